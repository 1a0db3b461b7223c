"""A recording: the same tokens, every part of a step in its lane, and nothing left behind."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from actors import trace
from actors.engine import Engine
from actors.options import MicroBatches
from actors.trace import COMMUNICATION, COMPUTE, INDEXER, LOOP, Recorder, Span
from cluster.admin import AdminServer
from cluster.cli import app
from cluster.trace import LANES, timeline
from model.sampling import Sampling
from tests.shoals import generate, tcp_engine
from tests.unit.test_admin import KEY, Still

SAMPLED = Sampling(max_tokens=6, temperature=0.8, seed=3, ignore_eos=True, logprobs=0)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(16, 272, (n,), generator=generator).tolist() for n in (40, 3, 130)]


def recorded(engine: Engine, steps: int = 100) -> list[Span]:
    recorder = Recorder(steps)
    engine.record(recorder)
    generate(engine, prompts(), SAMPLED)
    engine.record(None)
    return recorder.spans


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_recording_changes_no_bit_and_leaves_nothing_behind(
    tiny_v32: Path, micro_batches: MicroBatches
) -> None:
    with tcp_engine(tiny_v32, 2, micro_batches=micro_batches) as engine:
        expected = generate(engine, prompts(), SAMPLED)
        before = engine._runner._walked, engine.counters.laps
        recorder = Recorder(100)
        engine.record(recorder)
        assert generate(engine, prompts(), SAMPLED) == expected
        engine.record(None)
        assert (engine._runner._walked, engine.counters.laps) == before, "the same objects as before"
        count = len(recorder.spans)
        assert generate(engine, prompts(), SAMPLED) == expected
        assert len(recorder.spans) == count > 0


def test_every_layer_of_every_step_is_there_in_its_order(tiny_v32: Path) -> None:
    with tcp_engine(tiny_v32, 2) as engine:
        spans = recorded(engine)
        config = engine._runner.decoder.config
    by_step: defaultdict[int, list[Span]] = defaultdict(list)
    for span in spans:
        by_step[span.step].append(span)
    for step, own in by_step.items():
        computed = [span for span in own if span.lane == COMPUTE and span.name != INDEXER]
        assert all(a.start_s + a.seconds <= b.start_s + 1e-6 for a, b in pairwise(computed)), "one at a time"
        if step == 0:
            continue  # between the start of the recording and its first step
        for inner in (span for span in own if span.name == INDEXER):
            [outer] = [s for s in own if s.name == "attention" and s.layer == inner.layer]
            assert outer.start_s <= inner.start_s
            assert inner.start_s + inner.seconds <= outer.start_s + outer.seconds
        routed = [span.layer for span in own if span.name == "wait and combine"]
        assert routed == list(config.routed_layers)
        assert sum(span.name == "attention" for span in own) == config.num_layers
    for away in (span for span in spans if span.lane == COMMUNICATION):
        inside = [s for s in by_step[away.step] if s.layer == away.layer and s.name == "shared expert"]
        assert away.start_s <= inside[0].start_s
        assert inside[0].start_s + inside[0].seconds <= away.start_s + away.seconds
    assert {span.name for span in spans if span.lane == LOOP} >= {"plan", "forward", "sample"}


def test_the_experts_of_few_tokens_are_told_and_are_those_that_were_asked(tiny_v32: Path) -> None:
    with tcp_engine(tiny_v32, 2) as engine:
        recorder = Recorder(1000)
        engine.record(recorder)
        generate(engine, prompts()[1:2], SAMPLED)
        engine.record(None)
        told = [span for span in recorder.spans if span.name == "dispatch"]
        pairs_LE = engine.expert_pairs()
        first = engine._runner.decoder.config.num_dense_layers
    for place, counts in enumerate(pairs_LE):
        own = set().union(*(span.experts for span in told if span.layer == first + place))
        assert own == set(counts.nonzero()[0].tolist())
    with tcp_engine(tiny_v32, 2) as engine:
        many = [span for span in recorded(engine) if span.name == "dispatch" and span.step == 1]
        assert many and not any(span.experts for span in many), "a prompt's would light them all"


def test_it_ends_after_as_many_steps_as_were_asked_for(tiny_v32: Path) -> None:
    with tcp_engine(tiny_v32, 2) as engine:
        assert {span.step for span in recorded(engine, steps=2)} == {0, 1, 2}


def test_it_never_grows_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_SPANS", 3)
    recorder = Recorder(1)
    for _ in range(5):
        recorder.note("x", COMPUTE, 0.0)
    assert len(recorder.spans) == 3


def test_the_timeline_names_actors_and_lanes_and_begins_at_nothing() -> None:
    spans = {
        "attention-0": [
            Span("gate", COMPUTE, 100.5, 0.25, 1, 3),
            Span("rows away", COMMUNICATION, 100.6, 1.0, 1),
        ],
        "expert-0": [Span("experts", COMPUTE, 100.25, 0.5, 0, 3)],
        "expert-1": [],
    }
    events = json.loads(json.dumps(timeline(spans)))["traceEvents"]
    named = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    lines = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert sorted(named.values()) == sorted(spans)
    shown = [
        (named[e["pid"]], lines[e["pid"], e["tid"]], e["name"], e["ts"], e["dur"])
        for e in events
        if e["ph"] == "X"
    ]
    assert shown == [
        ("attention-0", COMPUTE, "gate", 250000.0, 250000.0),
        ("attention-0", COMMUNICATION, "rows away", 350000.0, 1000000.0),
        ("expert-0", COMPUTE, "experts", 0.0, 500000.0),
    ]
    assert set(lines.values()) <= set(LANES)
    assert timeline({})["traceEvents"] == []


def test_the_command_writes_what_the_listener_tells(tmp_path: Path) -> None:
    server = AdminServer(Still(), "127.0.0.1", 0, KEY)
    try:
        file = tmp_path / "trace.json"
        at = ["--url", server.url, "--key", KEY]
        done = CliRunner().invoke(app, ["trace", str(file), "--steps", "7", "--seconds", "0.5", *at])
        assert done.exit_code == 0, done.output
        assert json.loads(file.read_text()) == Still().trace(7, 0.5)
        refused = CliRunner().invoke(app, ["trace", str(file), "--url", server.url, "--key", "wrong"])
        assert refused.exit_code == 1 and "--key" in refused.stderr
    finally:
        server.close()


@pytest.mark.parametrize(
    "query", ["steps=0", "steps=x", "seconds=0", "seconds=1e9", "seconds=nan", "steps=1001"]
)
def test_a_recording_that_is_too_long_is_refused(query: str) -> None:
    from tests.unit.test_admin import ask

    server = AdminServer(Still(), "127.0.0.1", 0, KEY)
    try:
        assert ask(server, f"/trace?{query}", "POST")[0] == 400
    finally:
        server.close()
