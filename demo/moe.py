"""A mixture layer as training computes it, balanced by a bias.

No auxiliary loss chooses the experts: each gate's bias moves by gamma against the sign of its expert's
overload after every step (arXiv 2408.15664; DeepSeek-V3, section 2.1.2). The tiny sequence-wise loss of the
same section can be switched on. Knows nothing of attention.

Letters: B sequences  T tokens  M = B*T rows  D hidden  E experts  K experts per token  P = M*K pairs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from demo.parameters import BIAS, Parameters
from demo.precision import Arithmetic
from model.config import ModelConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """out_MD without the shared expert's share; load_E: pairs per expert, fp32; experts_MK as chosen."""

    out_MD: Tensor
    load_E: Tensor
    experts_MK: Tensor
    sequence_loss: Tensor


class MoeTrainer:
    """The experts of one layer; `prefix` ends in `mlp`."""

    def __init__(
        self, config: ModelConfig, prefix: str, parameters: Parameters, arithmetic: Arithmetic
    ) -> None:
        self._config, self._arithmetic = config, arithmetic
        self._prefix, self._parameters = prefix, parameters

    def forward(self, h_BTD: Tensor) -> Routed:
        """Every token through its experts and the shared one."""
        h_MD = h_BTD.flatten(0, 1)
        scores_ME = torch.sigmoid(h_MD.float() @ self._of("gate.weight").t())
        experts_MK = self._choose(scores_ME.detach())
        chosen_MK = scores_ME.gather(1, experts_MK)
        weights_MK = chosen_MK / chosen_MK.sum(-1, keepdim=True) * self._config.routed_scaling_factor
        load_E = _counts(experts_MK, self._config.num_experts)
        routed_MD = self._through_experts(h_MD, experts_MK, weights_MK, load_E)
        shared_MD = self.mlp(h_MD, "shared_experts")
        return Routed(
            out_MD=routed_MD + shared_MD,
            load_E=load_E,
            experts_MK=experts_MK,
            sequence_loss=self._sequence_loss(scores_ME, experts_MK, h_BTD.shape[0]),
        )

    def mlp(self, h_MD: Tensor, name: str) -> Tensor:
        """SwiGLU of one dense or shared MLP."""
        arithmetic, prefix = self._arithmetic, f"{name}." if name else ""
        gate_up = self._of(f"{prefix}gate_proj.weight"), self._of(f"{prefix}up_proj.weight")
        gate, up = arithmetic.linears(h_MD, *gate_up)
        return arithmetic.linear(arithmetic.fused(swiglu)(gate, up), self._of(f"{prefix}down_proj.weight"))

    @torch.no_grad()
    def move_bias(self, load_E: Tensor, gamma: Tensor) -> None:
        """One step against overload."""
        self._of(f"gate.{BIAS}").add_(torch.sign(load_E.mean() - load_E) * gamma)

    def _choose(self, scores_ME: Tensor) -> Tensor:
        """int64 [M, K]; of all groups those with the best two experts, and of those the best experts."""
        config = self._config
        choice = scores_ME + self._of(f"gate.{BIAS}")
        groups = choice.unflatten(-1, (config.num_expert_groups, -1))
        best_two = groups.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(best_two, dtype=torch.bool)
        kept.scatter_(1, best_two.topk(config.num_kept_groups, dim=-1).indices, True)
        allowed = groups.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        return allowed.topk(config.num_experts_per_token, dim=-1).indices

    def _through_experts(
        self, h_MD: Tensor, experts_MK: Tensor, weights_MK: Tensor, load_E: Tensor
    ) -> Tensor:
        """Rows sorted by expert, one grouped product per weight, and back."""
        arithmetic, per_token = self._arithmetic, experts_MK.shape[1]
        order_P = experts_MK.flatten().argsort(stable=True)
        place_P = torch.empty_like(order_P).scatter_(
            0, order_P, torch.arange(len(order_P), device=h_MD.device)
        )
        ends_E = load_E.cumsum(0).to(torch.int32)
        rows_PD: Tensor = _Spread.apply(h_MD, order_P, place_P, per_token)
        gate_up = self._of("experts.gate_proj.weight"), self._of("experts.up_proj.weight")
        gate, up = arithmetic.grouped(rows_PD, ends_E, *gate_up)
        inner = arithmetic.fused(swiglu)(gate, up)
        (out_PD,) = arithmetic.grouped(inner, ends_E, self._of("experts.down_proj.weight"))
        back_PD: Tensor = _Reorder.apply(out_PD, place_P, order_P)
        combined: Tensor = arithmetic.fused(weighted_sum)(back_PD.unflatten(0, (-1, per_token)), weights_MK)
        return combined

    def _sequence_loss(self, scores_ME: Tensor, experts_MK: Tensor, num_sequences: int) -> Tensor:
        """Sum over experts of f * P per sequence, mean over sequences (DeepSeek-V3, eq. 17 to 20)."""
        share = (scores_ME / scores_ME.sum(-1, keepdim=True)).unflatten(0, (num_sequences, -1)).mean(1)
        chosen = torch.zeros_like(scores_ME).scatter_(1, experts_MK, 1.0).unflatten(0, (num_sequences, -1))
        frequency = chosen.mean(1) * (self._config.num_experts / self._config.num_experts_per_token)
        return (frequency * share).sum(-1).mean()

    def _of(self, name: str) -> Tensor:
        return self._parameters[f"{self._prefix}.{name}"]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)


def weighted_sum(rows_MKD: Tensor, weights_MK: Tensor) -> Tensor:
    return (rows_MKD.float() * weights_MK[..., None]).sum(1).to(rows_MKD.dtype)


def _counts(experts_MK: Tensor, num_experts: int) -> Tensor:
    """Pairs per expert, fp32 (exact: far below 2^24); no bincount, which would wait for the device."""
    flat = experts_MK.flatten()
    return torch.zeros(num_experts, device=flat.device).scatter_add_(
        0, flat, torch.ones_like(flat, dtype=torch.float32)
    )


class _Spread(torch.autograd.Function):
    """Each row once per pair, sorted; the gradient gathers, where autograd would scatter atomically."""

    @staticmethod
    def forward(ctx: Any, rows_MD: Tensor, order_P: Tensor, place_P: Tensor, per_token: int) -> Tensor:
        ctx.save_for_backward(place_P)
        ctx.per_token = per_token
        return rows_MD.index_select(0, order_P // per_token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (place_P,) = ctx.saved_tensors
        gathered = grads[0].index_select(0, place_P).unflatten(0, (-1, ctx.per_token))
        return gathered.sum(1), None, None, None


class _Reorder(torch.autograd.Function):
    """rows[places], where `order` undoes `places`."""

    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, places_P: Tensor, order_P: Tensor) -> Tensor:
        ctx.save_for_backward(order_P)
        return rows_PD.index_select(0, places_P)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order_P,) = ctx.saved_tensors
        return grads[0].index_select(0, order_P), None, None
