"""Experts that move between actors while tokens are made: the same tokens, and nobody asked in vain."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import copytree

import pytest
import torch

from actors.attention import ViewInbox
from actors.engine import Engine
from actors.expert import ExpertServer
from actors.expert_sources import Files, load_experts
from actors.held import HeldExperts, in_every_layer
from actors.runner import Runner
from model.checkpoint import Checkpoint
from model.names import expert_tensors
from model.sampling import Sampling
from model.shards import CheckpointError
from router.exchange import Exchange
from router.parcels import Reply, pack_parcel
from router.tcp import TcpTransport
from router.view import ActorId, ExpertActor
from tests.shoals import CONTEXT, TOKEN, experts_of, generate, load, local_engine, running, view_of
from tests.unit.test_expert import client, parcel, receive

GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)
PROMPTS = [list(range(20 + i, 60 + 7 * i)) for i in range(3)]


@contextmanager
def fleet(directory: Path) -> Iterator[tuple[Engine, list[ExpertServer], ViewInbox, Checkpoint]]:
    """Two expert servers that hold half of the experts each, and an engine that dispatches to them."""
    config, decoder, checkpoint = load(directory)
    half = config.num_experts // 2
    shares = [range(half), range(half, config.num_experts)]
    views = ViewInbox()
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(
                    ExpertServer(
                        config,
                        experts_of(checkpoint, share),
                        actor_id=f"expert-{i}",
                        incarnation=1,
                        token=TOKEN,
                    )
                )
            )
            for i, share in enumerate(shares)
        ]
        transport = TcpTransport(token=TOKEN, actor="attention-0", incarnation=1)
        stack.callback(transport.close)
        exchange = Exchange(transport, view_of(config, 1, lives(servers), shares), next_view=views.newest)
        runner = Runner(decoder, exchange, num_pages=64)
        yield Engine(runner, context_tokens=CONTEXT), servers, views, checkpoint


def lives(servers: list[ExpertServer]) -> list[ExpertActor]:
    return [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=1, host=server.host, port=server.port)
        for i, server in enumerate(servers)
    ]


def test_experts_taken_shown_and_dropped_in_mid_answer_change_no_bit(tiny_v32: Path) -> None:
    expected = generate(local_engine(tiny_v32), PROMPTS, GREEDY)
    with fleet(tiny_v32) as (engine, servers, views, checkpoint):
        config = checkpoint.config_to_serve(0)
        moved = range(config.num_experts // 4)  # from the first to the second
        steps = iter(range(1000))
        plain = engine.step

        def step_and_move(now_s: float = 0.0):
            number = next(steps)
            if number == 4:
                load_experts(
                    servers[1].held, [Files(checkpoint.reader, torch.float32)], in_every_layer(config, moved)
                )
                kept = range(len(moved), config.num_experts // 2)
                later = [*moved, *range(config.num_experts // 2, config.num_experts)]
                views.put(view_of(config, 2, lives(servers), [kept, later]))
            if number == 6:
                assert engine.epoch == 2, "adopted at a step boundary"
                servers[0].drop(in_every_layer(config, moved))
                assert servers[0].pairs.isdisjoint(in_every_layer(config, moved))
            return plain(now_s)

        engine.step = step_and_move  # type: ignore[method-assign]
        assert generate(engine, PROMPTS, GREEDY) == expected
        assert next(steps) > 8, "it moved while tokens were made"
        assert [server.counters.refused for server in servers] == [0, 0]
        assert engine.stats()["retried_pairs"] == 0


def test_what_is_dropped_too_early_is_refused_and_never_computed_from_nothing(tiny_v32: Path) -> None:
    with fleet(tiny_v32) as (engine, servers, views, checkpoint):
        config = checkpoint.config_to_serve(0)
        expected = generate(local_engine(tiny_v32), PROMPTS[:1], GREEDY)
        every = in_every_layer(config, range(config.num_experts))
        load_experts(servers[1].held, [Files(checkpoint.reader, torch.float32)], servers[0].pairs)
        servers[0].drop(every)
        both = [range(config.num_experts)] * 2  # the view shows what the first does not hold
        views.put(view_of(config, 2, lives(servers), both))
        assert generate(engine, PROMPTS[:1], GREEDY) == expected
        assert servers[0].counters.refused > 0


def test_a_drop_waits_for_what_is_being_computed(tiny_v32: Path) -> None:
    with fleet(tiny_v32) as (_, servers, _, checkpoint):
        config = checkpoint.config_to_serve(0)
        held, computing, go_on = servers[0]._held, threading.Event(), threading.Event()
        plain = held.forward

        def slow(*arguments):
            computing.set()
            assert go_on.wait(10)
            return plain(*arguments)

        held.forward = slow  # type: ignore[method-assign]
        connection = client(servers[0])
        sent = parcel(config, 2, 3)
        header, payload = pack_parcel(sent)
        connection.send(header, *payload)
        assert computing.wait(10)
        dropping = threading.Thread(target=servers[0].drop, args=([(sent.key.layer, 3)],))
        dropping.start()
        assert (sent.key.layer, 3) in held.pairs
        go_on.set()
        [frame] = receive(connection, 1)
        assert isinstance(frame.message, Reply)
        dropping.join(10)
        assert (sent.key.layer, 3) not in held.pairs
        connection.close()


def test_an_expert_that_is_not_what_was_read_before_is_refused_and_not_held(tiny_v32: Path, tmp_path: Path):
    directory = copytree(tiny_v32, tmp_path / "copy")
    config, _, checkpoint = load(directory)
    known = experts_of(checkpoint, range(config.num_experts)).digests
    layer = config.routed_layers.start
    tensor = checkpoint.tensor(next(iter(expert_tensors(config, layer, 3))))
    with tensor.file.open("r+b") as opened:
        opened.seek(tensor.offset)
        [first] = opened.read(1)
        opened.seek(tensor.offset)
        opened.write(bytes([first ^ 1]))
    held = HeldExperts(config, torch.float32)
    files = Files(checkpoint.reader, torch.float32, known)
    load_experts(held, [files], [(layer, 2), (layer, 4)])
    with pytest.raises(CheckpointError, match=f"expert 3 of layer {layer} is not what was read of it before"):
        load_experts(held, [files], [(layer, 3)])
    assert held.pairs == {(layer, 2), (layer, 4)}
