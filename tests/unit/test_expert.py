"""The expert actor: what it computes, what it refuses, and that it goes on."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.expert import ExpertServer
from actors.held import HeldExperts
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from router.connection import Connection, connect
from router.heartbeat import Beat
from router.parcels import Dispatch, Nack, Reply, pack_parcel, unpack_reply
from router.transport import DispatchKey, Parcel
from router.view import ActorId, ExpertActor
from router.wire import Frame, encode, kinds
from tests.shoals import TOKEN, experts_of, load, running

HELD = (3, 5, 8, 30)
LIMIT_S = 10.0


@pytest.fixture(scope="module")
def held(tiny_v32: Path) -> HeldExperts:
    return experts_of(Checkpoint.open(tiny_v32), HELD)


@pytest.fixture(scope="module")
def config(tiny_v32: Path) -> ModelConfig:
    return load(tiny_v32)[0]


@pytest.fixture(name="server")
def _server(config: ModelConfig, held: HeldExperts) -> Iterator[ExpertServer]:
    with running(ExpertServer(config, held, actor_id="expert-0", incarnation=1, token=TOKEN)) as server:
        yield server


def client(server: ExpertServer, name: str = "attention-0") -> Connection:
    peer = ExpertActor(actor_id=ActorId("expert-0"), incarnation=1, host=server.host, port=server.port)
    return connect(peer, token=TOKEN, actor=name, incarnation=1, accepted=kinds(Reply, Nack, Beat))


def receive(connection: Connection, count: int) -> list[Frame]:
    frames: list[Frame] = []
    deadline_s = time.monotonic() + LIMIT_S
    while len(frames) < count:
        assert time.monotonic() < deadline_s, f"{len(frames)} of {count} answers came"
        connection.flush()
        frames += [frame for frame in connection.receive() if not isinstance(frame.message, Beat)]
        time.sleep(0.0005)  # a spinning thread would keep the server's from running
    return frames


def parcel(
    config: ModelConfig,
    num_rows: int,
    num_pairs: int,
    *,
    seed: int = 0,
    layer: int | None = None,
    step: int = 1,
) -> Parcel:
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    return Parcel(
        key=DispatchKey(
            epoch=1, step=step, layer=layer or config.num_dense_layers, micro_batch=0, attempt=seed
        ),
        rows_RD=torch.randn(num_rows, config.hidden_size, generator=generator),
        row_P=random.integers(0, num_rows, num_pairs).astype(np.int32),
        expert_P=random.choice(np.array(HELD, dtype=np.int32), num_pairs),
    )


def ask(connection: Connection, sent: Parcel) -> Tensor:
    header, payload = pack_parcel(sent)
    connection.send(header, *payload)
    [frame] = receive(connection, 1)
    assert isinstance(frame.message, Reply), frame.message
    key, rows_PD = unpack_reply(frame, frame.message)
    assert key == sent.key
    return rows_PD


@pytest.mark.parametrize(("num_rows", "num_pairs"), [(1, 1), (1, 4), (3, 7), (20, 60), (300, 400)])
def test_an_answer_is_each_row_through_the_expert_it_names(
    server: ExpertServer, held: HeldExperts, config: ModelConfig, num_rows: int, num_pairs: int
):
    connection = client(server)
    for layer in range(config.num_dense_layers, config.num_layers):
        sent = parcel(config, num_rows, num_pairs, layer=layer)
        expected = held.shard.forward_reference(layer, sent.rows_RD, sent.row_P, sent.expert_P)
        assert torch.equal(ask(connection, sent), expected)
    connection.close()


def test_the_same_parcel_twice_gets_the_same_answer_twice(server: ExpertServer, config: ModelConfig):
    connection = client(server)
    sent = parcel(config, 9, 30)
    assert torch.equal(ask(connection, sent), ask(connection, sent))
    connection.close()


def test_parcels_of_several_actors_computed_together_have_the_bits_of_each_alone(
    server: ExpertServer, config: ModelConfig
):
    sent = [
        parcel(config, 1 + 3 * i, 5 + 40 * i, seed=i, layer=config.num_dense_layers + i % 2, step=i)
        for i in range(6)
    ]
    connections = [client(server, f"attention-{i}") for i in range(3)]
    alone = [ask(connections[0], one) for one in sent]
    batches = server.counters.batches
    for connection in connections:
        queue(connection, *sent)
    for connection in connections:
        connection.flush()
    for connection in connections:
        for frame in receive(connection, len(sent)):
            assert isinstance(frame.message, Reply)
            key, rows = unpack_reply(frame, frame.message)
            assert torch.equal(rows, alone[key.step])
        connection.close()
    assert server.counters.parcels == 4 * len(sent)
    assert server.counters.batches < batches + 3 * len(sent), "nothing was computed together"


def queue(connection: Connection, *parcels: Parcel) -> None:
    """Put frames on the way in one go, so that they arrive together."""
    for sent in parcels:
        header, payload = pack_parcel(sent)
        connection._outgoing.append(memoryview(encode(header, sum(map(len, payload)))))
        connection._outgoing.extend(payload)


def spoiled(config: ModelConfig) -> dict[str, tuple[Dispatch, list[bytes]]]:
    """By what is wrong with it: a header and payload that must be refused."""
    good = parcel(config, 2, 3)
    header, parts = pack_parcel(good)
    payload = [bytes(part) for part in parts]

    def with_key(**changes: int) -> Dispatch:
        names = ("epoch", "step", "layer", "micro_batch", "attempt")
        key = dict(zip(names, header.key, strict=True)) | changes
        return dataclasses.replace(header, key=tuple(key.values()))

    def other(**changes: object) -> tuple[Dispatch, list[bytes]]:
        new_header, new_parts = pack_parcel(dataclasses.replace(good, **changes))
        return new_header, [bytes(part) for part in new_parts]

    int32 = np.int32
    return {
        "a dense layer": (with_key(layer=0), payload),
        "a negative layer": (with_key(layer=-1), payload),
        "a layer too many": (with_key(layer=config.num_layers + config.num_mtp_layers), payload),
        "a huge layer": (with_key(layer=2**63), payload),
        "narrow rows": other(rows_RD=torch.zeros(2, config.hidden_size - 1)),
        "wide rows": other(rows_RD=torch.zeros(2, config.hidden_size + 1)),
        "another dtype": other(rows_RD=good.rows_RD.bfloat16()),
        "an unknown dtype": (dataclasses.replace(header, dtype="float8_e4m3fn"), payload),
        "a dtype that is no dtype": (dataclasses.replace(header, dtype="nn.Module"), payload),
        "an expert of another actor": other(expert_P=np.array([3, 4, 5], dtype=int32)),
        "a negative expert": other(expert_P=np.array([3, -1, 5], dtype=int32)),
        "an expert beyond all": other(expert_P=np.array([3, config.num_experts, 5], dtype=int32)),
        "a row too many": other(row_P=np.array([0, 1, 2], dtype=int32)),
        "a negative row": other(row_P=np.array([0, -1, 1], dtype=int32)),
        "no rows": (dataclasses.replace(header, num_rows=0), payload[1:]),
        "no pairs": (dataclasses.replace(header, num_pairs=0), payload[:1]),
        "no width": (dataclasses.replace(header, width=0), payload[1:]),
        "negative counts": (dataclasses.replace(header, num_rows=-2, width=-config.hidden_size), payload),
        "huge counts": (dataclasses.replace(header, num_rows=2**62, num_pairs=2**62), payload),
        "a short payload": (header, [*payload[:2], payload[2][:-1]]),
        "a long payload": (header, [*payload, b"!"]),
        "no payload": (header, []),
    }


def test_what_it_cannot_answer_is_refused_by_name_and_it_goes_on(
    server: ExpertServer, config: ModelConfig, held: HeldExperts, caplog: pytest.LogCaptureFixture
):
    good = parcel(config, 2, 3)
    expected = held.shard.forward_reference(good.key.layer, good.rows_RD, good.row_P, good.expert_P)
    connection = client(server)
    for number, (what, (header, payload)) in enumerate(spoiled(config).items(), start=1):
        connection.send(header, *payload)
        [frame] = receive(connection, 1)
        assert isinstance(frame.message, Nack), what
        assert frame.message.key == header.key, what
        assert frame.message.reason, what
        assert server.counters.refused == number
        assert torch.equal(ask(connection, good), expected), what
    connection.close()


def test_an_attention_actor_that_leaves_while_it_is_owed_rows_harms_nobody(
    server: ExpertServer, config: ModelConfig
):
    for seed in range(5):
        header, payload = pack_parcel(parcel(config, 200, 400, seed=seed))
        leaving = client(server, "leaving")
        leaving.send(header, *payload)
        leaving.close()
    staying = client(server)
    sent = parcel(config, 4, 8)
    assert torch.equal(ask(staying, sent), ask(staying, sent))
    staying.close()


def test_an_actor_that_holds_nothing_refuses_everything(config: ModelConfig):
    empty = HeldExperts(config, torch.float32)
    with running(ExpertServer(config, empty, actor_id="expert-0", incarnation=1, token=TOKEN)) as server:
        connection = client(server)
        header, payload = pack_parcel(parcel(config, 2, 3))
        connection.send(header, *payload)
        [frame] = receive(connection, 1)
        assert isinstance(frame.message, Nack)
        connection.close()


def test_stopping_twice_and_after_the_end_is_no_error(config: ModelConfig, held: HeldExperts):
    server = ExpertServer(config, held, actor_id="expert-0", incarnation=1, token=TOKEN)
    thread = threading.Thread(target=server.run)
    thread.start()
    server.stop()
    server.stop()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    server.stop()
