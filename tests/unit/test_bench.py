"""The benchmark: its client over real HTTP, its arithmetic, and marks that change nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.baseline import ATTENTION, DTYPES, EXPERTS, Probe, Variant, choose, find_best, scaled
from bench.load import LoadError, load
from bench.machine import CpuTimes, command, cpu_times, describe, foreign_cores
from bench.report import LOCAL, TCP, Run, agreement_lines, as_json, goal_lines, render
from bench.server import ServerError, serving
from bench.soak import Outcome, request
from bench.step import MARK, STAGES, marked, shares_of
from bench.timing import Answer, Round, common_prefix, figures, make_prompts
from cluster.api_client import events_in
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.errors import DeadlineExceeded, Overloaded, error_fields, install_handlers
from ingress.tokens import Tokenizer
from model.sampling import Sampling
from tests.shoals import generate, local_engine
from tests.unit.loopback_engine import TOKEN, Background, LoopbackEngine, hashed, http_server

WORKLOAD = {"prompt_tokens": 8, "new_tokens": 4, "rounds": 1}


def answer(*times_s: float, sent_s: float = 0.0, tokens: tuple[int, ...] | None = None) -> Answer:
    return Answer(token_ids=tokens or tuple(range(len(times_s))), sent_s=sent_s, arrivals_s=times_s)


def one_round(rate: float, tokens: tuple[int, ...] = (1, 2)) -> Round:
    """Two tokens at `rate` tokens/s."""
    return Round(answers=(answer(1 / rate, 2 / rate, tokens=tokens),), foreign_cores=0.0)


def run_of(**rates: tuple[float, float]) -> Run:
    """Tokens/s at 1 and at 16; a name's underscores are spaces."""
    run = Run()
    for name, (alone, many) in rates.items():
        run.add(name.replace("_", " "), 1, one_round(alone))
        run.add(name.replace("_", " "), 16, one_round(many))
    return run


# The client


@dataclass
class Served:
    url: str
    actor: LoopbackEngine


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer) -> Iterator[Served]:
    """The real application over HTTP, before an engine without a model."""
    background = Background()
    actor = LoopbackEngine()
    engine = EngineClient([background.run(actor.start())], token=TOKEN, identity="door-0", patience_s=5.0)
    app = create_app(engine=engine, tokenizer=tokenizer, model_name="tiny", context_tokens=256)
    with http_server(background, app) as url:
        yield Served(url, actor)
    background.run(actor.stop())
    background.close()


def continued(prompt: list[int], count: int) -> tuple[int, ...]:
    """What the engine without a model says after `prompt`."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(hashed(ids, len(prompt)))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("tokens_per_event", [1, 3])
def test_answers_are_the_tokens_of_their_prompts_in_order(served: Served, tokens_per_event: int) -> None:
    served.actor.tokens_per_event = tokens_per_event
    prompts = make_prompts("client", count=9, num_tokens=12)
    answers = load(served.url, prompts, new_tokens=7, concurrency=4)
    assert [one.token_ids for one in answers] == [continued(prompt, 7) for prompt in prompts]
    assert all(one.sent_s <= one.arrivals_s[0] for one in answers)
    assert all(list(one.arrivals_s) == sorted(one.arrivals_s) for one in answers)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_than_asked_for_are_under_way(served: Served, concurrency: int) -> None:
    answers = load(
        served.url, make_prompts("x", count=7, num_tokens=4), new_tokens=5, concurrency=concurrency
    )
    for one in answers:
        under_way = sum(other.sent_s <= one.sent_s < other.arrivals_s[-1] for other in answers)
        assert 1 <= under_way <= concurrency


def test_a_refused_request_is_an_error_with_the_words_of_the_server(served: Served) -> None:
    with pytest.raises(LoadError, match="HTTP 400"):
        load(served.url, make_prompts("x", count=2, num_tokens=300), new_tokens=5, concurrency=2)


def test_a_stream_that_fails_is_an_error(served: Served) -> None:
    served.actor.fail = True
    try:
        with pytest.raises(LoadError):
            load(served.url, make_prompts("x", count=1, num_tokens=4), new_tokens=5, concurrency=1)
    finally:
        served.actor.fail = False


def test_no_server_at_all_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(LoadError, match="ConnectError"):
        load(url, make_prompts("x", count=1, num_tokens=4), new_tokens=5, concurrency=1)


@given(st.lists(st.integers(min_value=0, max_value=60), max_size=6))
def test_events_do_not_depend_on_how_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = b'data: {"a":1}\n\n: keep-alive\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    buffer, found = bytearray(), list[str]()
    for start, end in itertools.pairwise(places):
        buffer += stream[start:end]
        found += events_in(buffer)
    assert (found, buffer) == (['{"a":1}', '{"b":2}', "[DONE]"], b"")


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no such directory"), serving(tmp_path / "nothing", []):
        pass


# The soak


async def told_by(app: FastAPI) -> Outcome:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        return await request(client, {"max_tokens": 1}, "sk-a")


@pytest.mark.parametrize("page", ["<html>Bad Gateway</html>", "", "[]", '{"error": "no"}', '{"error": {}}'])
def test_an_error_that_is_not_ours_is_counted_as_a_failure_with_its_words(page: str) -> None:
    app = FastAPI()

    @app.post("/v1/completions")
    async def complete() -> Response:
        return Response(page, status_code=502)

    outcome = asyncio.run(told_by(app))
    assert (outcome.status, outcome.is_served, outcome.is_refused) == (502, False, False)
    assert outcome.error == f"HTTP 502: {page}"


@pytest.mark.parametrize("status", [429, 503, 504])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_refusal_counts_by_its_status_also_in_a_stream_that_has_begun(status: int, has_begun: bool) -> None:
    refusal = Overloaded("too much", retry_after_s=7, status=status)
    if status == 504:
        refusal = DeadlineExceeded("too late", retry_after_s=7)
    app = FastAPI()
    install_handlers(app)

    @app.post("/v1/completions")
    async def complete() -> Response:
        if not has_begun:
            raise refusal
        event = f"data: {json.dumps(error_fields(refusal))}\n\n"
        return Response(f": keep-alive\n\n{event}data: [DONE]\n\n", media_type="text/event-stream")

    outcome = asyncio.run(told_by(app))
    assert (outcome.status, outcome.retry_after_s) == (status, 7)
    assert outcome.is_refused == (status != 504)


# The figures


def test_the_rate_of_a_round_runs_from_the_first_request_to_the_last_token() -> None:
    answers = (answer(2.0, 3.0, sent_s=1.0), answer(4.0, 5.0, 6.0, sent_s=2.0))
    assert Round(answers=answers, foreign_cores=0.0).tokens_per_s == 1.0


def test_times_per_request_leave_out_the_wait_for_the_first_token() -> None:
    one = answer(1.5, 1.7, 2.1, sent_s=1.0)
    assert (one.ttft_s, one.tpot_s) == (0.5, pytest.approx(0.3))
    assert answer(1.5).tpot_s is None


def test_figures_take_the_median_round_and_the_requests_of_all() -> None:
    rounds = [one_round(rate) for rate in (2.0, 8.0, 4.0)]
    got = figures(rounds)
    assert (got.tokens_per_s, got.least, got.most, got.requests) == (4.0, 2.0, 8.0, 3)
    assert got.ttft_ms[0] == pytest.approx(250.0)
    assert got.ttft_ms[1] == pytest.approx(495.0)  # 99 % of the way from 250 to 500, on the last of two legs


def test_an_answer_has_a_time_for_every_token() -> None:
    with pytest.raises(ValueError, match="2 tokens with 1 arrival"):
        answer(1.0, tokens=(1, 2))


def test_prompts_are_bytes_and_follow_from_their_seed() -> None:
    one, again, other = (make_prompts(seed, count=3, num_tokens=50) for seed in ("a", "a", "b"))
    assert one == again
    assert one != other
    assert all(len(prompt) == 50 and min(prompt) >= 16 and max(prompt) < 272 for prompt in one + other)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"), [((1, 2, 3), (1, 2, 3), 3), ((1, 2, 3), (1, 9, 3), 1), ((1,), (2,), 0)]
)
def test_agreement_ends_at_the_first_difference(ours, theirs, agreed) -> None:
    assert common_prefix(ours, theirs) == agreed


# The baseline


def test_the_fastest_variant_is_found_for_each_batch() -> None:
    best = {
        1: Variant(dtype="bfloat16", threads=1, attention="eager", experts="grouped_mm"),
        16: Variant(dtype="float32", threads=2, attention="sdpa", experts="eager"),
    }

    def probe(variant: Variant, batch: int) -> Probe:
        """Faster by one for everything that is as in the best."""
        wanted = best[batch]
        rate = sum(getattr(variant, name) == getattr(wanted, name) for name in Variant.__slots__)
        return Probe(variant=variant, batch=batch, ttft_ms=1.0, tpot_ms=1.0, tokens_per_s=float(rate))

    probes = find_best(probe, batches=(1, 16), threads=(1, 2))
    assert {batch: choose(probes, batch) for batch in best} == best
    tried = {one.variant for one in probes if one.batch == 16}
    assert {(one.dtype, one.threads) for one in tried} == set(itertools.product(DTYPES, (1, 2)))
    assert {(one.attention, one.experts) for one in tried} == set(itertools.product(ATTENTION, EXPERTS))


def test_a_probe_is_scaled_to_the_whole_workload() -> None:
    probe = scaled(Variant(), answer(1.0, 1.5, 2.0), batch=4, new_tokens=11)
    assert probe.tokens_per_s == pytest.approx(4 * 11 / (1.0 + 10 * 0.5))


# The report


def test_goals_are_met_or_not_met_by_the_ratio_of_medians() -> None:
    run = run_of(shoal_local=(30.0, 39.0), shoal_tcp=(14.0, 30.0), transformers=(10.0, 10.0))
    run.best = {1: Variant(), 16: Variant()}
    lines = goal_lines(run)
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["met", "not met", "not met", "met"]
    assert "shoal local at 1 >= 3 x transformers: 3.00 x, met" in lines[0]


def test_a_ratio_to_a_baseline_that_was_not_tuned_says_so() -> None:
    lines = goal_lines(run_of(shoal_local=(30.0, 39.0), transformers=(10.0, 10.0)))
    assert all(line.endswith("(untuned)") for line in lines)
    assert len(lines) == 2


def test_without_a_baseline_there_are_no_goals() -> None:
    assert goal_lines(run_of(shoal_local=(30.0, 40.0))) == []


def test_a_difference_in_greedy_tokens_is_told() -> None:
    run = run_of(shoal_local=(1.0, 1.0), transformers=(1.0, 1.0))
    run.add(TCP, 1, one_round(1.0, tokens=(1, 9)))
    run.add(TCP, 16, one_round(1.0))
    tcp, transformers = agreement_lines(run)
    assert "shoal local = shoal tcp in 1 of 2 answers, 75.0 %" in tcp
    assert "shoal local = transformers in 2 of 2 answers, 100.0 %" in transformers


def test_every_system_and_figure_is_in_the_tables() -> None:
    run = run_of(shoal_local=(31.0, 41.0), transformers=(11.0, 21.0))
    console = Console(width=140)
    with console.capture() as capture:
        console.print(render(run, WORKLOAD, describe()))
    text = capture.get()
    for shown in (LOCAL, "transformers", "31.0", "41.0", "11.0", "21.0", "2.82", "1.95"):
        assert shown in text, shown


def test_the_json_names_no_host_and_holds_no_nan() -> None:
    run = Run()
    run.add(LOCAL, 1, Round(answers=(answer(1.0),), foreign_cores=0.1))  # one token: no TPOT
    text = json.dumps(as_json(run, WORKLOAD, describe()), allow_nan=False)
    assert json.loads(text)["measured"][0]["tpot_ms"] == [None, None]
    assert platform.node() not in text


def test_arguments_that_hold_paths_are_left_out_of_the_record() -> None:
    given_arguments = ["--quick", "--json", "/a/b", "--seed", "3", "--checkpoint=/c", "--json=/d"]
    assert command("bench.serving", given_arguments) == "python -m bench.serving --quick --seed 3"


def test_kept_results_say_their_command_and_no_place_of_a_machine() -> None:
    kept = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
    assert kept
    for file in kept:
        result = json.loads(file.read_text())
        told = result.get("command") or result["workload"]["command"]
        assert told.startswith(("python -m bench.", "make ")), file.name
        assert not any(word.startswith("/") for word in told.replace("=", " ").split()), file.name


def test_foreign_cores_are_what_the_machine_did_beyond_us() -> None:
    before = CpuTimes(wall_s=10.0, machine_s=100.0, own_s=50.0)
    after = CpuTimes(wall_s=20.0, machine_s=115.0, own_s=60.0)
    assert foreign_cores(before, after) == 0.5


def test_the_work_of_our_subprocesses_counts_as_ours() -> None:
    before = cpu_times().own_s
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            while cpu_times().own_s < before + 0.25:  # far more than this process needs to look
                time.sleep(0.1)
        finally:
            busy.kill()


# The profile


def test_marks_change_no_token_and_leave_nothing_behind(tiny_v32: Path) -> None:
    import torch

    prompts = make_prompts("profile", count=1, num_tokens=36)
    sampling = Sampling(max_tokens=2, temperature=0.0, ignore_eos=True)
    originals = [getattr(owner, name) for owner, name, _ in STAGES]
    expected = generate(local_engine(tiny_v32), prompts, sampling)
    # What torch.profiler.profile wraps; that one imports the compiler first, which takes seconds.
    with marked(), torch.autograd.profiler.profile() as profiler:
        assert generate(local_engine(tiny_v32), prompts, sampling) == expected
    assert [getattr(owner, name) for owner, name, _ in STAGES] == originals
    events = profiler.function_events
    shares = shares_of(events)
    assert set(shares) == {stage for _, _, stage in STAGES}
    assert all(share.calls for share in shares.values())
    steps_s = sum(e.cpu_time_total for e in events if e.name == f"{MARK}other Python") / 1e6
    assert sum(share.total_s for share in shares.values()) == pytest.approx(steps_s, rel=0.01)
