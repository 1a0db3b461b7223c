"""`shoal top` by its keys, in a terminal of Textual's, against a real admin listener."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from rich.console import Console
from textual.widgets import Static

from cluster.admin import AdminServer
from cluster.beacon import Beacon
from cluster.snapshot import Unavailable
from cluster.top_app import TopApp
from tests.unit.test_admin import KEY, snapshot

LIMIT_S = 20.0


class Moving:
    """A cluster that gets on by a view and a second each time it is looked at, or does not answer."""

    def __init__(self) -> None:
        self.looks = 0
        self.is_away = False

    def snapshot(self) -> dict[str, Any]:
        if self.is_away:
            raise Unavailable("the controller does not answer")
        self.looks += 1
        return {**snapshot(100.0 + self.looks, [[4 * self.looks, 0], [1, 1]]), "epoch": self.looks}

    def kill(self, actor_id: str) -> bool:
        return False

    def trace(self, steps: int, seconds: float) -> dict[str, Any]:
        return {"traceEvents": []}

    def order(self, order: str, arguments: Mapping[str, Any]) -> dict[str, str]:
        return {"error": "no order"}


@pytest.fixture(name="moving")
def _moving() -> Moving:
    return Moving()


@pytest.fixture(name="app")
def _app(moving: Moving) -> Iterator[TopApp]:
    server = AdminServer(moving, "127.0.0.1", 0, KEY)
    yield TopApp(Beacon(url=server.url, key=KEY))
    server.close()


def shown(app: TopApp) -> str:
    console = Console(width=120, height=60, file=io.StringIO(), record=True)
    console.print(app.query_one("#cluster", Static).content)
    return console.export_text()


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = asyncio.get_running_loop().time() + LIMIT_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline_s, what
        await asyncio.sleep(0.02)


def test_the_picture_moves_is_held_still_by_space_and_left_by_q(app: TopApp, moving: Moving) -> None:
    async def look() -> None:
        async with app.run_test() as pilot:
            await until(lambda: "view 3" in shown(app), "it does not move")
            assert "expert-0" in shown(app) and "expert load" in shown(app)
            await pilot.press("space")
            await app.workers.wait_for_complete()
            held, looks = shown(app), moving.looks
            app.look()
            await app.workers.wait_for_complete()
            assert (shown(app), moving.looks) == (held, looks)
            await pilot.press("space")
            await until(lambda: moving.looks > looks + 1, "it does not go on")
            await pilot.press("q")
            await until(lambda: not app.is_running, "q does not leave")

    asyncio.run(look())


def test_a_cluster_that_does_not_answer_is_said_and_seen_again_when_it_does(
    app: TopApp, moving: Moving
) -> None:
    async def look() -> None:
        async with app.run_test():
            await until(lambda: "expert-0" in shown(app), "nothing is shown")
            moving.is_away = True
            await until(lambda: "answers HTTP 503" in shown(app), "its silence is not told")
            moving.is_away = False
            await until(lambda: "expert-0" in shown(app), "its return is not shown")

    asyncio.run(look())
