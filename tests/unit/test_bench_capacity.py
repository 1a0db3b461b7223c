"""The open loop: its requests, its figures, its search, and what it writes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from bench.arrivals import UNFINISHED, ask_all, ask_shoal
from bench.capacity_report import BEGIN, END, Report, System, as_json, show, write
from bench.contenders import NAMES, SERVE, missing
from bench.features import Comparison
from bench.llama_process import LLAMA, PYTHON
from bench.mix import NEW_TOKENS, PROMPT_TOKENS, SHARED_TOKENS, make_mix
from bench.outcome import Limits, Outcome, Trial
from bench.overlap import MEASURED_CALLS, Point, asleep, late
from bench.replay import replay
from bench.search import Search
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.tokens import Tokenizer
from tests.shoals import local_engine
from tests.unit.loopback_engine import TOKEN, Background, LoopbackEngine, http_server

LIMITS = Limits(ttft_s=1.0, tpot_s=0.1)


def outcome(ttft_s: float, tpot_s: float, *, tokens: int = 5, error: str | None = None) -> Outcome:
    last_s = ttft_s + tpot_s * (tokens - 1)
    return Outcome(
        due_s=0.0, wanted_tokens=tokens, num_tokens=tokens, first_s=ttft_s, last_s=last_s, error=error
    )


def trial(rate: float, num_kept: int, num_late: int) -> Trial:
    outcomes = [outcome(0.5, 0.05)] * num_kept + [outcome(2.0, 0.05)] * num_late
    return Trial(rate=rate, outcomes=tuple(outcomes), foreign_cores=0.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(0.5, 20.0))
def test_a_rate_changes_when_requests_come_and_nothing_else(seed: int, rate: float):
    one, other = make_mix(seed, rate=rate, seconds=5.0), make_mix(seed, rate=1.0, seconds=200.0)
    assert [(r.prompt, r.new_tokens) for r in one] == [(r.prompt, r.new_tokens) for r in other][: len(one)]
    assert [r.at_s * rate for r in one] == pytest.approx([r.at_s for r in other][: len(one)])
    assert all(r.at_s < 5.0 for r in one)


def test_the_mix_has_every_length_and_beginnings_that_are_shared():
    mix = make_mix(0, rate=10.0, seconds=30.0)
    assert {r.new_tokens for r in mix} == set(NEW_TOKENS)
    lengths = {len(r.prompt) for r in mix}
    assert lengths == {own + shared for own in PROMPT_TOKENS for shared in (0, SHARED_TOKENS)}
    beginnings = [tuple(r.prompt[:SHARED_TOKENS]) for r in mix if len(r.prompt) > SHARED_TOKENS]
    assert max(map(beginnings.count, beginnings)) > len(mix) // 10
    assert 200 < len(mix) < 400


@settings(max_examples=100, deadline=None)
@given(st.floats(0.05, 50.0), st.floats(0.1, 10.0))
def test_the_search_ends_near_what_is_served(capacity: float, first: float):
    search = Search(first)
    for _ in range(16):
        search.note(is_served=search.rate <= capacity)
    assert search.served is not None and search.refused is not None
    assert search.served <= capacity < search.refused
    assert search.refused / search.served < 1.2


def test_a_request_is_in_time_if_it_is_whole_and_within_both_limits():
    assert outcome(1.0, 0.1).keeps(LIMITS)
    assert not outcome(1.01, 0.05).keeps(LIMITS)
    assert not outcome(0.5, 0.11).keeps(LIMITS)
    assert not outcome(0.5, 0.05, error=UNFINISHED).keeps(LIMITS)
    assert not Outcome(due_s=0.0, wanted_tokens=3).keeps(LIMITS)


def test_nine_of_ten_in_time_are_served():
    assert trial(2.0, 9, 1).is_served(LIMITS)
    assert not trial(2.0, 8, 2).is_served(LIMITS)
    assert trial(2.0, 8, 2).figures(LIMITS)["goodput"] == 1.6


# Over HTTP, to the real application before an engine without a model


@pytest.fixture(name="served", scope="module")
def _served(tokenizer: Tokenizer) -> Iterator[tuple[str, LoopbackEngine]]:
    background, actor = Background(), LoopbackEngine()
    engine = EngineClient([background.run(actor.start())], token=TOKEN, identity="door-0", patience_s=5.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name="tiny", context_tokens=512)
    with http_server(background, app) as url:
        yield url, actor
    background.run(actor.stop())
    background.close()


def test_every_request_of_the_open_loop_leaves_when_it_is_due_and_comes_back_whole(
    served: tuple[str, LoopbackEngine],
):
    mix = make_mix(3, rate=60.0, seconds=0.3)
    outcomes = ask_all(served[0], "tiny", ask_shoal, mix, patience_s=10.0)
    assert [one.num_tokens for one in outcomes] == [request.new_tokens for request in mix]
    assert all(one.error is None and one.ttft_s > 0 for one in outcomes)
    gaps = [one.due_s - outcomes[0].due_s for one in outcomes]
    assert gaps == pytest.approx([request.at_s - mix[0].at_s for request in mix])


def test_who_is_not_done_in_time_is_given_up(served: tuple[str, LoopbackEngine]):
    url, actor = served
    actor.fail = True
    try:
        outcomes = ask_all(url, "tiny", ask_shoal, make_mix(3, rate=60.0, seconds=0.1), patience_s=0.5)
    finally:
        actor.fail = False
    assert all(one.error is not None for one in outcomes)


def test_an_engine_is_asked_in_order_and_answers_every_request(tiny_v32: Path):
    mix = make_mix(1, rate=50.0, seconds=0.1)[:3]
    outcomes = replay(local_engine(tiny_v32), mix)
    assert [one.num_tokens for one in outcomes] == [request.new_tokens for request in mix]
    assert all(one.ttft_s >= 0 and one.tpot_s >= 0 for one in outcomes)


# The distant experts of bench.overlap


def test_late_arrivals_come_in_order_and_not_before_their_time():
    given_ = iter([["a", "b"], ["c"]])

    def poll(timeout_s: float | None) -> list[str]:
        found = next(given_, None)
        while found is None:
            time.sleep(1.0)  # in a daemon thread: it ends with the process
        return found

    start_s, poll_late = time.perf_counter(), late(poll, 0.05)
    assert [name for _ in range(3) for name in poll_late(None)] == ["a", "b", "c"]
    assert time.perf_counter() - start_s >= 0.05
    assert late(poll, 0.0) is poll


def test_an_expert_that_sleeps_has_computed_before():
    calls = []

    def forward(layer, rows_RD, row_P, expert_P):
        calls.append(layer)
        return rows_RD[row_P]

    rows_RD, row_P = torch.eye(3), np.array([0, 2, 2, 1], dtype=np.int32)
    sleeping = asleep(forward)
    for _ in range(2 * MEASURED_CALLS):
        assert torch.equal(sleeping(5, rows_RD, row_P, row_P), rows_RD[torch.tensor([0, 2, 2, 1])])
    assert len(calls) == MEASURED_CALLS


def test_a_point_is_judged_by_its_pairs():
    point = Point(rows=8, delay_ms=1.0, seconds={1: [2.0, 4.0, 6.0], 2: [1.0, 4.0, 2.0]})
    point.waited = {1: [0.5] * 3, 2: [0.1] * 3}
    assert point.figures()["ratio"] == 2.0


# The report


def report() -> Report:
    comparison = Comparison(feature="int8", model="bench")
    for side, seconds in (("on", 1.0), ("off", 1.5)):
        comparison.rounds[side] = [(seconds, [outcome(0.1, 0.01)])] * 2
    systems = [
        System(name="shoal tcp", trials=[trial(1.0, 10, 0), trial(2.0, 5, 5)], peak_bytes=10**9),
        System(name="transformers serve", trials=[trial(1.0, 0, 10)]),
    ]
    return Report(
        command="python -m bench.capacity --quick",
        load_before=0.5,
        limits=LIMITS,
        missing={"vllm (cpu)": "not installed"},
        systems=systems,
        comparisons=[comparison],
    )


def test_what_is_written_says_how_it_was_made_and_is_written_over(tmp_path: Path):
    page, results, picture = tmp_path / "page.md", tmp_path / "run.json", tmp_path / "run.png"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write(report(), results, picture, page)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count(BEGIN) == text.count(END) == text.count("python -m bench.capacity --quick") == 1
    assert "| shoal tcp | 1.00 |" in text and "below 1.00" in text and "vllm (cpu): not installed." in text
    assert json.loads(results.read_text())["command"] == "python -m bench.capacity --quick"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_table_and_the_json_say_the_same():
    console = Console(width=160)
    with console.capture() as capture:
        console.print(show(report()))
    kept = as_json(report())
    assert kept["systems"][0]["served"] == 1.0 and kept["systems"][1]["served"] is None
    assert kept["features"][0]["ratio"] == 1.5
    assert "1.50" in capture.get() and "shoal tcp" in capture.get()


def test_who_is_missing_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv(PYTHON, raising=False)
    assert set(missing(NAMES)) == {SERVE, LLAMA, "vllm (cpu)"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace())
    assert all("not asked" in reason for reason in missing(NAMES).values()), "there, and still not asked"
