"""`shoal top` as an application that goes on.

Asks for a snapshot every second on a thread and draws what came. Knows nothing of what a snapshot holds.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from cluster.beacon import Beacon
from cluster.places import NoAnswer, fetch
from cluster.top import draw

PERIOD_S = 1.0
WINDOW = 10  # snapshots that rates are taken over


class TopApp(App[None]):
    """q leaves, space holds the picture still."""

    BINDINGS = [Binding("q", "quit", "quit"), Binding("space", "pause", "pause")]

    def __init__(self, beacon: Beacon) -> None:
        super().__init__()
        self._beacon = beacon
        self._past: deque[dict[str, Any]] = deque(maxlen=WINDOW + 1)
        self._is_paused = False

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static("asking ...", id="cluster")
        yield Footer()

    def on_mount(self) -> None:
        self.look()
        self.set_interval(PERIOD_S, self.look)

    def action_pause(self) -> None:
        self._is_paused = not self._is_paused

    def look(self) -> None:
        if not self._is_paused:
            self.run_worker(self._look, thread=True, exclusive=True)

    def _look(self) -> None:
        try:
            self._past.append(fetch(self._beacon))
            picture: Any = draw(list(self._past))
        except NoAnswer as error:
            picture = Text(str(error), "bold red")
        self.call_from_thread(self.query_one("#cluster", Static).update, picture)
