"""Experts taken from an actor that serves: bit for bit, or not at all, and nobody waits for it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
import torch

from actors import expert, expert_frames, expert_peer
from actors.build import DTYPES, build_expert, take_experts
from actors.expert import ExpertServer
from actors.expert_frames import ExpertPart, ExpertWanted
from actors.expert_sources import Files, load_experts
from actors.held import FILES, PEERS, HeldExperts, in_every_layer
from actors.options import ActorOptions, ExpertOrder
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.expert_form import form_of, parts_of
from model.reader import Progress
from model.shards import CheckpointError
from router.connection import connect
from router.dialogue import hear, say
from router.handshake import AuthenticationError, Challenge
from router.heartbeat import Beat
from router.parcels import Reply, pack_parcel, unpack_reply
from router.transport import PeerLost
from router.view import ActorId, ExpertActor
from router.wire import kinds
from tests.shoals import TOKEN, experts_of, running, view_of
from tests.unit.test_expert import HELD, ask, client, parcel, receive

Note = Callable[[Progress], None]


def silent(_: Progress) -> None:
    pass


@pytest.fixture(scope="module")
def checkpoint(tiny_v32: Path) -> Checkpoint:
    return Checkpoint.open(tiny_v32)


@pytest.fixture(scope="module")
def config(checkpoint: Checkpoint) -> ModelConfig:
    return checkpoint.config_to_serve(0)


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_frames, "PART_BYTES", 1000)  # tiny experts are smaller than a part


@pytest.fixture(scope="module")
def sound(checkpoint: Checkpoint) -> HeldExperts:
    """Of fp32, out of the files; to look at."""
    return experts_of(checkpoint, HELD)


@contextmanager
def peers(checkpoint: Checkpoint, count: int = 2, dtype: torch.dtype = torch.float32):
    """Servers that all hold HELD, and an order to take it from them."""
    config = checkpoint.config_to_serve(0)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(
                    ExpertServer(
                        config,
                        experts_of(checkpoint, HELD, dtype),
                        actor_id=f"expert-{i}",
                        incarnation=1,
                        token=TOKEN,
                    )
                )
            )
            for i in range(count)
        ]
        yield servers, order_of(config, servers)


def order_of(config: ModelConfig, servers: list[ExpertServer], incarnation: int = 1) -> ExpertOrder:
    lives = [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=incarnation, host=one.host, port=one.port)
        for i, one in enumerate(servers)
    ]
    return ExpertOrder(
        pairs=frozenset(in_every_layer(config, HELD)),
        known=servers[0].digests,
        view=view_of(config, 1, lives, [HELD] * len(servers)).to_bytes(),
    )


def options(directory: Path | str, dtype: str = "float32") -> ActorOptions:
    return ActorOptions(
        actor_id="expert-9",
        incarnation=7,
        directory=str(directory),
        dtype=dtype,
        host="127.0.0.1",
        token=TOKEN,
        draft_tokens=0,
        weights_from="peers",
    )


@contextmanager
def taken(
    config: ModelConfig, order: ExpertOrder, told: ActorOptions, note: Note = silent
) -> Iterator[tuple[HeldExperts, str]]:
    """What an actor of these options holds when it has obeyed, and whom it has that from."""
    server, loaded = build_expert(told, config, order, note)
    with running(server):
        assert server.pairs == order.pairs and loaded.digests.items() >= order.known.items()
        yield server.held, loaded.origins


def are_equal(one: HeldExperts, other: HeldExperts) -> bool:
    """Whether they hold the same, bit for bit."""
    assert one.pairs == other.pairs
    return all(
        form_of(one.shard.expert(*pair)) == form_of(other.shard.expert(*pair))
        and all(
            torch.equal(mine.view(torch.uint8), theirs.view(torch.uint8))
            for mine, theirs in zip(
                parts_of(one.shard.expert(*pair)), parts_of(other.shard.expert(*pair)), strict=True
            )
        )
        for pair in one.pairs
    )


@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_an_expert_of_a_peer_is_bit_for_bit_that_of_the_files(
    checkpoint: Checkpoint, config: ModelConfig, dtype: str
):
    with peers(checkpoint, 1, DTYPES[dtype]) as (servers, order):
        with taken(config, order, options("/gone", dtype)) as (held, origins):
            assert are_equal(held, experts_of(checkpoint, HELD, DTYPES[dtype]))
            assert held.digests == servers[0].digests
            num_bytes = servers[0].counters.bytes_given
            assert held.bytes_taken == {PEERS: num_bytes} and num_bytes > 1000 * len(order.pairs)
            assert held.taken == {PEERS: len(order.pairs)}
        assert origins == f"{len(order.pairs)} experts from expert-0"


def test_several_peers_are_asked_in_turns(checkpoint: Checkpoint, config: ModelConfig):
    with peers(checkpoint, 2) as (_, order), taken(config, order, options("/gone")) as (_, origins):
        half = len(order.pairs) // 2
        assert origins == f"{half} experts from expert-0, {half} from expert-1"


def test_parcels_are_answered_between_any_two_parts(
    checkpoint: Checkpoint, config: ModelConfig, sound: HeldExperts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(expert, "GIVEN_SHARE", 0.0)
    said: list[str] = []
    with peers(checkpoint, 1) as ([server], order):
        connection, (header, payload) = client(server), pack_parcel(parcel(config, 3, 7))
        expected = ask(connection, parcel(config, 3, 7))
        plain = server._listener.send

        def send(peer, message, *parts) -> None:
            if not isinstance(message, Challenge):
                said.append(message.KIND)
            plain(peer, message, *parts)
            if isinstance(message, ExpertPart):
                connection.send(header, *payload)  # there before the next part that is asked for

        server._listener.send = send  # type: ignore[method-assign]
        with taken(config, order, options("/gone")) as (held, _):
            assert are_equal(held, sound)
        answers = receive(connection, said.count(ExpertPart.KIND))
        connection.close()
    assert len(answers) > 2 * len(order.pairs)
    assert said == [ExpertPart.KIND, Reply.KIND] * len(answers)
    for frame in answers:
        assert isinstance(frame.message, Reply)
        assert torch.equal(unpack_reply(frame, frame.message)[1], expected)


def test_two_that_take_from_one_another_at_once_both_get_what_they_want(
    checkpoint: Checkpoint, config: ModelConfig
):
    shares = [HELD[:2], HELD[2:]]
    servers = [
        ExpertServer(
            config, experts_of(checkpoint, share), actor_id=f"expert-{i}", incarnation=1, token=TOKEN
        )
        for i, share in enumerate(shares)
    ]
    lives = [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=1, host=one.host, port=one.port)
        for i, one in enumerate(servers)
    ]
    view = view_of(config, 1, lives, shares).to_bytes()
    known = servers[0].digests | servers[1].digests
    together = threading.Barrier(2, timeout=10)

    def take(server: ExpertServer, share: tuple[int, ...]) -> None:
        together.wait()
        order = ExpertOrder(pairs=frozenset(in_every_layer(config, share)), known=known, view=view)
        take_experts(server, options("/gone"), order, silent)

    with running(servers[0]), running(servers[1]):
        threads = [
            threading.Thread(target=take, args=(server, share))
            for server, share in zip(servers, reversed(shares), strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert are_equal(servers[0].held, servers[1].held)


def test_the_files_are_asked_first_unless_it_is_said_otherwise_and_peers_where_those_are_damaged(
    checkpoint: Checkpoint, config: ModelConfig, tmp_path: Path, sound: HeldExperts
):
    first = replace(options(copytree(checkpoint.directory, tmp_path / "copy")), weights_from="files")
    with peers(checkpoint, 1) as ([server], order):
        count = len(order.pairs)
        with taken(config, order, first) as (held, origins):
            assert origins == f"{count} experts from files" and held.taken == {FILES: count}
        assert server.counters.bytes_given == 0
        damage(tmp_path / "copy")
        with taken(config, order, first) as (held, origins):
            assert are_equal(held, sound)
            assert origins.startswith(f"{count} experts from expert-0; files: expert ")
            assert "is not what was read of it before" in origins


def damage(directory: Path) -> None:
    """A byte of each kilobyte is another."""
    for file in directory.glob("*.safetensors"):
        data = bytearray(file.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start::64] = bytes(byte ^ 1 for byte in data[start::64])
        file.write_bytes(data)


def test_what_nobody_knows_is_never_taken_from_a_peer(checkpoint: Checkpoint, config: ModelConfig):
    with peers(checkpoint, 1) as ([server], order):
        unknown = replace(order, known={})
        with taken(config, unknown, options(checkpoint.directory)) as (held, _):
            assert held.taken == {FILES: len(order.pairs)}
        with pytest.raises(CheckpointError, match=r"config\.json"):
            build_expert(options("/gone"), config, unknown, silent)
        assert server.counters.bytes_given == 0


Fails = Callable[[ExpertServer, pytest.MonkeyPatch], None]


def spoilt(server: ExpertServer, _: pytest.MonkeyPatch) -> None:
    server.spoil()


def one_bit(server: ExpertServer, _: pytest.MonkeyPatch) -> None:
    for pair in server.pairs:
        parts_of(server.held.shard.expert(*pair))[-1].view(torch.uint8)[-1, -1] ^= 1


def another_dtype(server: ExpertServer, _: pytest.MonkeyPatch) -> None:
    int8 = experts_of(Checkpoint.open(CHECKPOINTS[0]), HELD, torch.int8)
    for pair in server.pairs:
        server.held.fill(*pair, int8.shard.expert(*pair))


def hung(server: ExpertServer, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = server.held.weights

    def wait(layer: int, expert: int):
        RELEASED.wait(10)
        return weights(layer, expert)

    monkeypatch.setattr(expert_peer, "PATIENCE_S", 0.2)
    server.held.weights = wait  # type: ignore[method-assign]


def wrong_part(server: ExpertServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(expert, wanted: ExpertWanted):
        header, payload = expert_frames.part_of(expert, wanted)
        return (replace(header, start=wanted.start + 1), payload) if wanted.start else (header, payload)

    monkeypatch.setattr("actors.expert.part_of", other)


def too_long(server: ExpertServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def longer(expert, wanted: ExpertWanted):
        header, payload = expert_frames.part_of(expert, wanted)
        return header, [*payload, memoryview(bytes(expert_peer.MAX_FRAME_BYTES))]

    monkeypatch.setattr("actors.expert.part_of", longer)


RELEASED = threading.Event()
CHECKPOINTS: list[Path] = []
FAILURES: dict[Fails, str] = {
    spoilt: "its memory is damaged",
    one_bit: "its memory is damaged",
    another_dtype: "held as",
    hung: r"(not within 0.2 s|timed out)",
    wrong_part: "came unasked",
    too_long: "over the limit",
}


@pytest.mark.parametrize("fails", FAILURES, ids=lambda fails: fails.__name__)
def test_a_peer_that_fails_is_named_and_asked_once_and_the_files_have_it(
    checkpoint: Checkpoint,
    config: ModelConfig,
    sound: HeldExperts,
    fails: Fails,
    monkeypatch: pytest.MonkeyPatch,
):
    CHECKPOINTS[:] = [checkpoint.directory]
    RELEASED.clear()
    with peers(checkpoint, 1) as ([server], order):
        fails(server, monkeypatch)
        try:
            with taken(config, order, options(checkpoint.directory)) as (held, origins):
                assert are_equal(held, sound)
                count = len(order.pairs)
                assert origins.startswith(f"{count} experts from files; expert-0: ")
                assert re.search(FAILURES[fails], origins)
            with pytest.raises(
                CheckpointError, match=f"from anybody: expert-0: .*{FAILURES[fails]}.*; files: "
            ):
                build_expert(options("/gone"), config, order, silent)
        finally:
            RELEASED.set()


def test_a_peer_that_dies_in_mid_expert_is_followed_by_the_next(
    checkpoint: Checkpoint, config: ModelConfig, sound: HeldExperts
):
    with peers(checkpoint, 2) as (servers, order):
        parts = 0

        def kill_one(_: Progress) -> None:
            nonlocal parts
            parts += 1
            if parts == 2:
                servers[0].stop()

        with taken(config, order, options("/gone"), kill_one) as (held, origins):
            assert are_equal(held, sound)
            count = len(order.pairs)
            assert origins.startswith(f"{count} experts from expert-1; expert-0: failed on the way: ")


def test_another_life_at_the_same_address_is_not_taken_from(checkpoint: Checkpoint, config: ModelConfig):
    with peers(checkpoint, 1) as ([server], _):
        earlier = order_of(config, [server], incarnation=2)
        with pytest.raises(CheckpointError, match=r"expert-0: .* is 'expert-0' in life 1"):
            build_expert(options("/gone"), config, earlier, silent)


def test_what_a_peer_has_dropped_is_had_from_another_and_the_rest_still_from_it(
    checkpoint: Checkpoint, config: ModelConfig, sound: HeldExperts
):
    with peers(checkpoint, 2) as (servers, order):
        for server, dropped in zip(servers, HELD, strict=False):
            server.drop(in_every_layer(config, [dropped]))
        with taken(config, order, options("/gone")) as (held, origins):
            assert are_equal(held, sound)
        for name in ("expert-0", "expert-1"):
            assert f"from {name}" in origins and f"{name}: refuses: it is not held here" in origins


def test_only_who_has_the_token_gets_anything(checkpoint: Checkpoint):
    with peers(checkpoint, 1) as ([server], _):
        life = ExpertActor(actor_id=ActorId("expert-0"), incarnation=1, host=server.host, port=server.port)
        with pytest.raises((PeerLost, AuthenticationError)):
            connect(life, token=b"another", actor="x", incarnation=1, accepted=kinds(ExpertPart))


def test_what_cannot_be_given_is_refused_by_name_and_it_goes_on(checkpoint: Checkpoint, config: ModelConfig):
    layer, huge = config.num_dense_layers, 2**63
    odd = [(0, 3, 0), (-1, 3, 0), (huge, 3, 0), (layer, -1, 0), (layer, config.num_experts, 0), (layer, 4, 0)]
    odd += [(layer, huge, 0), (layer, 3, -1), (layer, 3, 1 << 40), (layer, 3, huge)]
    with peers(checkpoint, 1) as ([server], _):
        life = ExpertActor(actor_id=ActorId("expert-0"), incarnation=1, host=server.host, port=server.port)
        connection = connect(
            life, token=TOKEN, actor="x", incarnation=1, accepted=kinds(ExpertPart, Beat), role="expert"
        )
        for place in odd:
            wanted = ExpertWanted(layer=place[0], expert=place[1], start=place[2])
            say(connection, wanted, patience_s=10.0)
            part, payload = hear(connection, ExpertPart, patience_s=10.0)
            assert part.problem and not payload, place
        say(connection, ExpertWanted(layer=layer, expert=3, start=0), patience_s=10.0)
        assert hear(connection, ExpertPart, patience_s=10.0)[0].problem is None
        connection.close()


def test_no_source_at_all_is_said_so(checkpoint: Checkpoint, config: ModelConfig):
    held = HeldExperts(config, torch.float32)
    files = Files(Checkpoint.open(checkpoint.directory).reader, torch.float32, {(1, 3): 1})
    with pytest.raises(CheckpointError, match="expert 3 of layer 1 is not what was read of it before"):
        load_experts(held, [files], [(1, 3)])
    assert not held.pairs
