"""An attention actor as it is built: what its options ask for is what it gets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import build
from actors.options import ActorOptions, AttentionOptions
from tests.shoals import TOKEN


@pytest.mark.parametrize("threads", [1, 2])
def test_a_second_thread_is_started_where_it_is_asked_for(
    tiny_v32: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    started: list[str] = []
    monkeypatch.setattr(build, "helper", lambda: SimpleNamespace(start=lambda: started.append("helper")))
    options = ActorOptions(
        actor_id="attention-0",
        incarnation=1,
        directory=str(tiny_v32),
        dtype="float32",
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
    )
    attention = AttentionOptions(
        local=True,
        context_tokens=256,
        cache_tokens=1024,
        chunk_tokens=64,
        max_sequences=4,
        prefix_cache=True,
        max_queue=4,
        micro_batches=1,
        threads=threads,
        answer_timeout_s=10.0,
    )
    server, loaded = build.build_attention(options, attention, None, "", lambda _: None)
    server.stop()
    server.run()  # ends at once, and closes its socket
    assert loaded.bytes_read > 0
    assert len(started) == threads - 1
