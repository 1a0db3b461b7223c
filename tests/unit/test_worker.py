"""The actor process beside its loop: what its pulse tells, how a load makes room for requests."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from actors.attention import AttentionServer, ViewInbox
from actors.options import ActorOptions, ExpertOrder
from cluster import workers
from cluster.processes import Pulse
from cluster.workers import LONGEST_PAUSE_S, Worker, _with_pauses
from model.checkpoint import Checkpoint
from model.sampling import Sampling
from tests.shoals import TOKEN, local_engine


@pytest.mark.parametrize("is_urgent", [True, False])
def test_an_expert_actor_loads_in_a_hurry_or_not_and_its_pulse_tells_of_no_sequences(
    tiny_v32: Path, monkeypatch: pytest.MonkeyPatch, is_urgent: bool
):
    monkeypatch.setattr(workers, "PULSE_S", 0.0)
    worker = Worker(lambda: "127.0.0.1")
    options = ActorOptions(
        actor_id="expert-0",
        incarnation=1,
        directory=str(tiny_v32),
        dtype="float32",
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
        is_urgent=is_urgent,
    )
    config = Checkpoint.open(tiny_v32).config_to_serve(0)
    loaded = worker.load_expert(options, config, ExpertOrder(pairs=frozenset({(1, 0)})))
    assert loaded.bytes_read > 0
    assert loaded.origins == "1 experts from files"
    assert worker.pulse() == Pulse(has_ended=False, epoch=0, convicted=())
    taken = worker.take(ExpertOrder(pairs=frozenset({(1, 1)}), known=loaded.digests))
    assert set(taken.digests) == {(1, 1)} and taken.origins == "1 experts from files"
    worker._server._listener.close()


def test_the_pulse_of_an_attention_actor_tells_how_many_sequences_it_has(
    tiny_v32: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(workers, "PULSE_S", 0.0)
    engine = local_engine(tiny_v32)
    server = AttentionServer(
        engine, views=ViewInbox(), stopping=threading.Event(), actor_id="a", incarnation=1, token=TOKEN
    )
    worker = Worker(lambda: "127.0.0.1")
    worker._server, worker._loaded = server, object()  # type: ignore[assignment]
    engine.submit("door", "r", [1, 2], [], Sampling(max_tokens=1))
    pulse = worker.pulse()
    assert (pulse.num_sequences, pulse.is_handing_over) == (1, False)
    server._listener.close()


def test_after_each_piece_of_a_load_comes_a_pause_as_long_as_the_piece(monkeypatch: pytest.MonkeyPatch):
    now_s, slept, noted = 0.0, [], []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        slept.append(round(seconds, 6))

    monkeypatch.setattr(workers.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(workers.time, "sleep", sleep)
    note = _with_pauses(noted.append)
    for piece_s in (0.02, 0.05, 10.0):
        now_s += piece_s
        note(piece_s)
    assert slept == [0.02, 0.05, LONGEST_PAUSE_S]
    assert noted == [0.02, 0.05, 10.0]
