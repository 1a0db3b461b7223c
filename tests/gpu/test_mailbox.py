"""Rows come home through a mailbox as they would from experts of one's own, or a lane is lost, in time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from kernels.boxes import LATE, REFUSING
from kernels.expert_gemm import expert_down, expert_up
from kernels.fp8_rows import Fp8Rows, Fp8Weight, empty_rows, quantize_rows
from kernels.mailbox import Posted
from kernels.routes import routes_of
from model.fp8_shard import Fp8Shard, ServingUnit, one_expert
from model.true_width import true_width
from router.lanes import Life
from router.shm import Geometry
from router.shm_asker import AskerMailbox
from router.shm_expert import ExpertMailbox
from tests.gpu.fp8_inputs import random_weight
from tests.mailboxes import asker_mailbox, expert_mailbox, join, ticking

__all__ = ["ticking"]
pytestmark = pytest.mark.usefixtures("ticking")

HIDDEN, WIDTH, EXPERTS, TOP, LAYERS = 128, 128, 6, 2, 2
TILE_ROWS = 16
GEOMETRY = Geometry(slots=2, capacity=3, width=HIDDEN, per_row=TOP, places=TOP + 1)
CONFIG = replace(
    true_width(moe_layers=LAYERS, num_experts=16),
    num_layers=LAYERS,
    num_dense_layers=0,
    num_expert_groups=1,
    num_kept_groups=1,
    hidden_size=HIDDEN,
    moe_intermediate_size=WIDTH,
    num_experts=EXPERTS,
    num_experts_per_token=TOP,
)


@dataclass
class Layer:
    gate_up: Fp8Weight
    down: Fp8Weight


@pytest.fixture
def layers(device: torch.device) -> list[Layer]:
    return [
        Layer(
            random_weight((EXPERTS, 2 * WIDTH, HIDDEN), device),
            random_weight((EXPERTS, HIDDEN, WIDTH), device),
        )
        for _ in range(LAYERS)
    ]


class Server:
    """An expert actor that holds some experts of every layer."""

    def __init__(self, layers: list[Layer], held: list[int], device: torch.device, lanes: int = 2) -> None:
        self.shard = Fp8Shard(CONFIG, LAYERS * len(held), device)
        for index, layer in enumerate(layers):
            for expert in held:
                self.shard.fill(
                    index, expert, one_expert(layer.gate_up, expert), one_expert(layer.down, expert)
                )
        self.mailbox: ExpertMailbox = expert_mailbox(GEOMETRY, lanes, device)
        self.unit = ServingUnit(self.shard, self.mailbox.inbox, tile_rows=TILE_ROWS, most_experts=len(held))


def own_rows(layer: Layer, x: Fp8Rows, experts_RK: Tensor) -> Tensor:
    """bf16 [R, P, D]: what experts of one's own say."""
    rows = len(experts_RK)
    padded = torch.cat([experts_RK, experts_RK.new_full((rows, 1), -1)], 1)
    routes = routes_of(padded, EXPERTS, TILE_ROWS)
    between = empty_rows(rows * (TOP + 1), WIDTH, experts_RK.device)
    out = torch.zeros(rows * (TOP + 1), HIDDEN, dtype=torch.bfloat16, device=experts_RK.device)
    expert_up(x, layer.gate_up, routes, between)
    expert_down(between, layer.down, routes, out)
    return out.view(rows, TOP + 1, HIDDEN)[:, :TOP]


def came_home(asker: AskerMailbox, slot: int, rows: int) -> Tensor:
    """bf16 [R, K, D]: each place from the lane that says it has it."""
    outbox = asker.outboxes[slot]
    answers = outbox.answers.view(outbox.num_lanes, GEOMETRY.capacity, TOP + 1, HIDDEN)
    lanes = outbox.lanes[:rows, :TOP].long()
    r, k = torch.meshgrid(torch.arange(rows), torch.arange(TOP), indexing="ij")
    return answers[lanes, r.to(lanes.device), k.to(lanes.device)]


def some_rows(rows: int, device: torch.device) -> tuple[Fp8Rows, Tensor]:
    experts = torch.stack([torch.randperm(EXPERTS)[:TOP].sort().values for _ in range(rows)])
    return quantize_rows(torch.randn(rows, HIDDEN)), experts.int().to(device)


def on(device: torch.device, rows: Fp8Rows) -> Fp8Rows:
    return Fp8Rows(rows.values_RK.to(device), rows.scale_GR.to(device))


ASKER, OTHER, FIRST, SECOND = (Life(actor=name, incarnation=1) for name in ("a", "b", "x", "y"))


def test_rows_of_two_actors_and_two_micro_batches_are_those_of_ones_own(
    device: torch.device, layers: list[Layer]
) -> None:
    halves = {FIRST: [0, 2, 4], SECOND: [1, 3, 5]}
    servers = {life: Server(layers, held, device) for life, held in halves.items()}
    asker = asker_mailbox(GEOMETRY, 3, (LAYERS, EXPERTS), device)
    for life, server in servers.items():
        join(asker, ASKER, server.mailbox, life)
    asker.set_owners({layer: [FIRST, SECOND] * 3 for layer in range(LAYERS)})
    for layer, rows, slot in ((0, 3, 0), (1, 2, 1), (1, 1, 0)):
        x, experts = some_rows(rows, device)
        x = on(device, x)
        away = Posted(asker.outboxes[slot])
        away.post(x, experts, layer)
        for server in servers.values():
            server.unit.run()
        away.wait()
        assert not asker.lost.any()
        assert torch.equal(came_home(asker, slot, rows), own_rows(layers[layer], x, experts))


def test_parcels_of_several_askers_and_layers_are_answered_in_one_turn(
    device: torch.device, layers: list[Layer]
) -> None:
    server = Server(layers, list(range(EXPERTS)), device)
    askers = {life: asker_mailbox(GEOMETRY, 2, (LAYERS, EXPERTS), device) for life in (ASKER, OTHER)}
    sent = {}
    for layer, (life, asker) in enumerate(askers.items()):
        join(asker, life, server.mailbox, FIRST)
        asker.set_owners({at: [FIRST] * EXPERTS for at in range(LAYERS)})
        x, experts = some_rows(3 - layer, device)
        sent[life] = (on(device, x), experts, layer)
        Posted(asker.outboxes[1]).post(*sent[life])
    server.unit.run()
    for life, asker in askers.items():
        Posted(asker.outboxes[1]).wait()
        x, experts, layer = sent[life]
        assert not asker.lost.any()
        assert torch.equal(came_home(asker, 1, len(experts)), own_rows(layers[layer], x, experts))


def test_a_turn_without_parcels_ends_and_answers_nothing(device: torch.device, layers: list[Layer]) -> None:
    server = Server(layers, [0], device)
    asker = asker_mailbox(GEOMETRY, 2, (LAYERS, EXPERTS), device)
    join(asker, ASKER, server.mailbox, FIRST)
    server.unit.run()
    assert not asker.outboxes[0].words.any()
    assert not asker.outboxes[0].answers.any()


def test_who_does_not_answer_is_lost_after_the_patience_and_the_others_rows_are_there(
    device: torch.device, layers: list[Layer]
) -> None:
    servers = {life: Server(layers, list(range(EXPERTS)), device) for life in (FIRST, SECOND)}
    asker = asker_mailbox(GEOMETRY, 3, (LAYERS, EXPERTS), device)
    for life, server in servers.items():
        join(asker, ASKER, server.mailbox, life)
    asker.patience.fill_(1_000_000)
    asker.set_owners({layer: [FIRST, SECOND] * 3 for layer in range(LAYERS)})
    x, experts = some_rows(3, device)
    x = on(device, x)
    away = Posted(asker.outboxes[0])
    away.post(x, experts, 0)
    servers[SECOND].unit.run()
    away.wait()
    assert asker.found_lost(asker.lost) == {FIRST: LATE}
    wanted = own_rows(layers[0], x, experts)
    of_second = (experts % 2 == 1).cpu()
    assert torch.equal(came_home(asker, 0, 3)[of_second], wanted[of_second])
    # The view moves on: the survivor is asked for all of it, by a number that the late answer does not bear.
    asker.lose(FIRST)
    asker.set_owners({layer: [SECOND] * EXPERTS for layer in range(LAYERS)})
    away.post(x, experts, 0)
    servers[FIRST].unit.run()
    servers[SECOND].unit.run()
    away.wait()
    assert torch.equal(came_home(asker, 0, 3), wanted)


def test_a_late_answer_to_an_earlier_parcel_is_not_taken_for_one_to_the_next(
    device: torch.device, layers: list[Layer]
) -> None:
    server = Server(layers, list(range(EXPERTS)), device)
    asker = asker_mailbox(GEOMETRY, 2, (LAYERS, EXPERTS), device)
    join(asker, ASKER, server.mailbox, FIRST)
    asker.set_owners({layer: [FIRST] * EXPERTS for layer in range(LAYERS)})
    outbox = asker.outboxes[0]
    outbox.sequence.fill_(7)
    outbox.words[1, 0] = 7  # what an earlier step's answer left there
    asker.patience.fill_(10_000)
    away = Posted(outbox)
    x, experts = some_rows(1, device)
    away.post(on(device, x), experts, 0)
    away.wait()
    assert asker.found_lost(asker.lost) == {FIRST: LATE}


def test_an_actor_that_does_not_hold_an_expert_refuses(device: torch.device, layers: list[Layer]) -> None:
    server = Server(layers, [0, 1, 2], device)
    asker = asker_mailbox(GEOMETRY, 2, (LAYERS, EXPERTS), device)
    join(asker, ASKER, server.mailbox, FIRST)
    asker.set_owners({layer: [FIRST] * EXPERTS for layer in range(LAYERS)})
    away = Posted(asker.outboxes[0])
    x, _ = some_rows(2, device)
    for experts, lost in (([[0, 1], [1, 2]], {}), ([[0, 1], [2, 3]], {FIRST: REFUSING})):
        away.post(on(device, x), torch.tensor(experts, dtype=torch.int32, device=device), 1)
        server.unit.run()
        away.wait()
        assert asker.found_lost(asker.lost) == lost
