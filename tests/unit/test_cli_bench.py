"""`shoal bench`: every request counts, and its figures are of what came."""

from __future__ import annotations

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.bench_load import Load, Result, Sample, percentiles
from cluster.bench_page import page
from cluster.cli import app
from tests.unit.app_server import Served, says

LOAD = Load(requests=200, concurrency=4, rate=None, prompt_tokens=5, max_tokens=3, seed=1)


def bench(served: Served, *flags: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", "--url", str(served.http.base_url), *flags])
    return done.exit_code, done.stdout


@pytest.mark.parametrize("pace", [("--concurrency", "3"), ("--rate", "2000")])
def test_every_request_is_answered_and_counted(served: Served, tmp_path: Path, pace: tuple[str, str]):
    html = tmp_path / "bench.html"
    flags = ("--requests", "12", "--prompt-tokens", "9", "--max-tokens", "5", "--seed", "3", *pace)
    code, out = bench(served, *flags, "--json", "--html", str(html))
    told = json.loads(out)
    assert (code, told["requests"], told["failed"]) == (0, 12, {})
    submits = [submit for actor in served.actors for submit in actor.submits]
    assert [(submit.num_prompt, submit.sampling["max_tokens"]) for submit in submits] == [(9, 5)] * 12
    assert 60 / (told["seconds"] + 0.001) <= told["tokens_per_s"] <= 60 / (told["seconds"] - 0.001)  # rounded
    for measure in ("TTFT", "TPOT", "E2E"):
        assert 0 <= told["ms"][measure]["p50"] <= told["ms"][measure]["p99"]
    assert told["ms"]["TTFT"]["p50"] <= told["ms"]["E2E"]["p50"]
    assert html.read_text().count("<polyline") == 3


def test_no_more_are_under_way_than_asked_for(served: Served):
    says(served, "x" * 50, pause_s=0.002)
    most = 0
    answered = bench(served, "--requests", "1", "--max-tokens", "1")
    assert answered[0] == 0
    count, generate = 0, served.engine.generate

    async def counted(*arguments, **named):
        nonlocal most, count
        count += 1
        most = max(most, count)
        try:
            async for event in generate(*arguments, **named):
                yield event
        finally:
            count -= 1

    served.engine.generate = counted  # type: ignore[method-assign]
    try:
        assert bench(served, "--requests", "9", "--concurrency", "3", "--max-tokens", "5")[0] == 0
    finally:
        del served.engine.generate
    assert most == 3


def test_failures_are_told_and_do_not_spoil_the_figures(served: Served):
    says(served, "x", fail=True)
    code, out = bench(served, "--requests", "3", "--json")
    assert code == 1
    told = json.loads(out)
    assert list(told["failed"].values()) == [3]
    assert told["ms"]["TTFT"] == {"p50": None, "p90": None, "p99": None}
    code, out = bench(served, "--requests", "3")
    assert code == 1 and "3 failed: HTTP 500" in out


def test_random_moments_have_the_rate_that_was_asked_for_and_prompts_their_seed():
    fast = Load(requests=4000, concurrency=1, rate=50.0, prompt_tokens=5, max_tokens=1, seed=1)
    starts = fast.starts_s()
    assert starts[0] == 0 and starts == sorted(starts)
    assert 4000 / starts[-1] == pytest.approx(50, rel=0.1)
    assert LOAD.prompts(300) == LOAD.prompts(300)
    assert all(16 <= token < 300 for prompt in LOAD.prompts(300) for token in prompt)


class Tags(HTMLParser):
    """What is open, and what refers to elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "polyline"):
            self.open.append(tag)
        self.references += [str(value) for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_sound_asks_for_nothing_and_shows_hostile_words_as_words():
    generator = random.Random(0)
    samples = [
        Sample(arrivals_s=(generator.random(), 1 + generator.random()), tokens=9, whole_s=3.0)
        for _ in range(50)
    ]
    hostile = "<script>alert(1)</script>"
    result = Result(
        url="http://x", model=hostile, load=LOAD, seconds=2.0, samples=(*samples, Sample(fault=hostile))
    )
    told = page(result)
    tags = Tags()
    tags.feed(told)
    assert (tags.open, tags.references) == ([], [])
    assert "script" not in re.sub("&lt;/?script&gt;", "", told)
    assert "1 failed" in told
    [curve] = re.findall('stroke="#0072B2".*?points="([^"]+)"', told)
    heights = [float(point.split(",")[1]) for point in curve.split()]
    assert heights == sorted(heights, reverse=True), "a share never falls"


def test_percentiles_are_of_the_values():
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0}
    assert percentiles([]) == {"p50": None, "p90": None, "p99": None}
