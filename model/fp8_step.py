"""A decode step of one GPU: every layer, without the host; its experts may be elsewhere.

All buffers are made once for a number of rows, nothing depends on values, so that the whole step can be
captured in one CUDA graph. Rows without a token have slot -1 and length 0. Knows nothing of sequences,
embedding or head.

Letters: R rows  D hidden  N heads  X columns of the up projection  J chosen slots  P pages of a sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from kernels.absorb import absorb_query, absorb_value
from kernels.bf16_gemm import bf16_matmul
from kernels.boxes import Outbox
from kernels.expert_gemm import expert_down, expert_up, tile_rows_for
from kernels.fp8_gemm import fp8_matmul, splits_for
from kernels.fp8_rows import Fp8Rows, Fp8Weight, empty_rows
from kernels.gate_topk import GateShape, gate_topk
from kernels.index_logits import decode_config_for, index_logits_decode
from kernels.index_query import index_query
from kernels.latent_write import hadamard, latent_write
from kernels.residual_norm import Weighted, residual_norm
from kernels.routes import empty_routes
from kernels.select_topk import select_topk
from kernels.sparse_mla import config_for as attention_config_for
from kernels.sparse_mla import sparse_mla
from kernels.swiglu import swiglu_quantize
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_shard import shared_routes
from model.fp8_weights import Fp8Attention, Fp8Dense, Fp8Layer, Fp8Moe, latent_shape
from model.rope import inverse_frequencies

NARROW_SPLITS = 14  # of the gate's and the head weights' products: 7168 in parts of four blocks

Delta = Tensor | Weighted | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """hidden_RD: bf16, the embedded tokens; becomes the residual. The rest int32.

    slots_R: where each token's own latent goes, -1 nowhere. lengths_R: keys a token sees, itself included, 0
    for a row without a token. pages_RP: its sequence's pages.
    """

    hidden_RD: Tensor
    positions_R: Tensor
    slots_R: Tensor
    lengths_R: Tensor
    pages_RP: Tensor


class Away(Protocol):
    """The experts of other GPUs: rows out, and back into the outbox."""

    outbox: Outbox

    def post(self, rows: Fp8Rows, experts_RK: Tensor, layer: int) -> None:
        """Send without waiting."""

    def wait(self) -> None:
        """Until what was posted has been answered, or those who owe it are lost."""


class DecodeStep:
    """The walk for one number of rows. exact: no bit of a row depends on how many rows there are.

    away: who computes the routed experts; None: this GPU. The layers' Fp8Moe then hold the shared one alone.
    """

    def __init__(
        self,
        config: ModelConfig,
        inputs: StepInputs,
        num_positions: int,
        *,
        exact: bool = True,
        away: Away | None = None,
    ) -> None:
        self._config, self._inputs = config, inputs
        rows, device = inputs.hidden_RD.shape[0], inputs.hidden_RD.device
        self._shape = latent_shape(config)
        assert config.indexer is not None, "latent_shape refuses a model without one"
        angles_TP = torch.outer(
            torch.arange(num_positions, dtype=torch.float32),
            inverse_frequencies(config.rope, config.qk_rope_head_dim),
        )
        factor = config.rope.attention_factor
        self._cos = (angles_TP.cos() * factor).to(device)
        self._sin = (angles_TP.sin() * factor).to(device)
        self._hadamard = hadamard(self._shape.index, device)
        self._attention = attention_config_for(rows, exact=exact)
        # The choice of keys runs here while the queries go to the latents.
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        per_row = config.num_experts_per_token
        self._gate = GateShape(
            num_experts=config.num_experts,
            per_row=per_row,
            num_groups=config.num_expert_groups,
            kept_groups=config.num_kept_groups,
            scaling=config.routed_scaling_factor,
            shared=True,
        )
        routed = config.num_experts + 1
        self._counts = torch.zeros(config.num_layers, routed + 1, dtype=torch.int32, device=device)
        tile_rows = tile_rows_for(rows * per_row / config.num_experts)
        routes = empty_routes(routed, rows, per_row + 1, tile_rows, device, shared=True)
        self._routes = [replace(routes, counts=counts) for counts in self._counts]
        hidden, bf16 = config.hidden_size, torch.bfloat16
        self._normed = torch.empty(rows, hidden, dtype=bf16, device=device)
        self._normed8 = empty_rows(rows, hidden, device)
        self._query8 = empty_rows(rows, self._shape.query, device)
        self._values8 = empty_rows(rows, config.num_heads * config.v_head_dim, device)
        self._query = torch.empty(
            rows, config.num_heads, config.latent_dim, dtype=torch.float16, device=device
        )
        self._index_query = torch.empty(
            rows, config.indexer.num_heads, self._shape.index, dtype=torch.float8_e4m3fn, device=device
        )
        self._index_weights = torch.empty(rows, config.indexer.num_heads, device=device)
        self._dense8 = empty_rows(rows, config.intermediate_size, device)
        self._between8 = empty_rows(rows * (per_row + 1), config.moe_intermediate_size, device)
        self._away = away
        if away is None:
            self._pairs = torch.empty(rows * (per_row + 1), hidden, dtype=bf16, device=device)
        else:
            capacity = len(away.outbox.lanes)
            self._pairs = away.outbox.answers[: capacity * (per_row + 1)]
            self._shared = shared_routes(rows, per_row + 1, tile_rows, device)
        self._weights = torch.empty(rows, per_row, device=device)
        self._experts = torch.empty(rows, per_row, dtype=torch.int32, device=device)

    def run(self, layers: Sequence[Fp8Layer], cache: Fp8Cache, last_norm_D: Tensor) -> Tensor:
        """bf16 [R, D] after the last norm; the inputs' hidden_RD is the residual by then."""
        self._counts.zero_()
        delta: Delta = None
        for index, layer in enumerate(layers):
            self._norm(delta, layer.attention_norm_D)
            delta = self._attend(index, layer.attention, cache)
            self._norm(delta, layer.ffn_norm_D)
            delta = self._dense(layer.ffn) if isinstance(layer.ffn, Fp8Dense) else self._moe(index, layer.ffn)
        self._norm(delta, last_norm_D)
        return self._normed

    def _norm(self, delta: Delta, weight_D: Tensor) -> None:
        residual_norm(
            self._inputs.hidden_RD, delta, weight_D, self._config.rms_norm_eps, self._normed, self._normed8
        )

    def _attend(self, index: int, weights: Fp8Attention, cache: Fp8Cache) -> Tensor:
        """The parts of what attention adds to the residual."""
        config, inputs = self._config, self._inputs
        heads_SRH = self._parts(weights.head_weights_HD, NARROW_SPLITS)
        bf16_matmul(self._normed, weights.head_weights_HD, heads_SRH)
        down_SRX = self._split(weights.down)
        fp8_matmul(self._normed8, weights.down, down_SRX)
        turn = (self._cos, self._sin, inputs.positions_R)
        latent_write(
            down_SRX,
            self._shape,
            weights.norms,
            *turn,
            inputs.slots_R,
            self._hadamard,
            self._query8,
            cache.latents[index],
            cache.keys[index],
        )
        up_RX = self._normed.new_empty(len(self._normed), weights.up.values_NK.shape[0])
        fp8_matmul(self._query8, weights.up, up_RX)
        here = torch.cuda.current_stream()
        self._beside.wait_stream(here)
        with torch.cuda.stream(self._beside):
            slots_RJ = self._choose(up_RX, heads_SRH, index, cache)
        absorb_query(up_RX, weights.kv_b, *turn, self._query)
        here.wait_stream(self._beside)
        gathered_RNC = sparse_mla(
            self._query, slots_RJ, cache.latents[index], scale=config.softmax_scale, config=self._attention
        )
        absorb_value(gathered_RNC, weights.kv_b, self._values8)
        out_SRD = self._split(weights.out)
        fp8_matmul(self._values8, weights.out, out_SRD)
        return out_SRD

    def _choose(self, up_RX: Tensor, heads_SRH: Tensor, index: int, cache: Fp8Cache) -> Tensor:
        """int32 [R, J]: the slots that each row sees."""
        config, inputs = self._config, self._inputs
        index_query(
            up_RX,
            config.num_heads * config.qk_head_dim,
            heads_SRH,
            self._cos,
            self._sin,
            inputs.positions_R,
            self._hadamard,
            self._index_query,
            self._index_weights,
        )
        logits_RL = index_logits_decode(
            self._index_query,
            self._index_weights,
            cache.keys[index],
            inputs.pages_RP,
            inputs.lengths_R,
            config=decode_config_for(*inputs.pages_RP.shape),
        )
        return select_topk(logits_RL, inputs.lengths_R, inputs.pages_RP)

    def _dense(self, weights: Fp8Dense) -> Tensor:
        both_RF = self._normed.new_empty(len(self._normed), weights.gate_up.values_NK.shape[0])
        fp8_matmul(self._normed8, weights.gate_up, both_RF)
        swiglu_quantize(both_RF, self._dense8)
        out_SRD = self._split(weights.down)
        fp8_matmul(self._dense8, weights.down, out_SRD)
        return out_SRD

    def _moe(self, index: int, weights: Fp8Moe) -> Weighted:
        routes = self._routes[index]
        scores_SRE = self._parts(weights.gate_ED, NARROW_SPLITS)
        bf16_matmul(self._normed, weights.gate_ED, scores_SRE)
        gate_topk(scores_SRE, weights.bias_E, self._gate, self._weights, self._experts, routes)
        if self._away is not None:
            return self._moe_away(index, weights, self._away)
        expert_up(self._normed8, weights.gate_up, routes, self._between8)
        expert_down(self._between8, weights.down, routes, self._pairs)
        return Weighted(pairs_PD=self._pairs, weights_RK=self._weights, places=routes.pairs_per_row)

    def _moe_away(self, index: int, weights: Fp8Moe, away: Away) -> Weighted:
        """The shared expert's product hides a part of the others' way."""
        away.post(self._normed8, self._experts, index)
        expert_up(self._normed8, weights.gate_up, self._shared, self._between8)
        expert_down(self._between8, weights.down, self._shared, self._pairs)
        away.wait()
        outbox = away.outbox
        return Weighted(
            pairs_PD=outbox.answers,
            weights_RK=self._weights,
            places=self._shared.pairs_per_row,
            lanes_RP=outbox.lanes,
            lane_pairs=outbox.lanes.numel(),
        )

    def _split(self, weight: Fp8Weight) -> Tensor:
        """Room for the parts of a product with this weight, fp32 [S, R, N]."""
        outputs, inner = weight.values_NK.shape
        return self._parts(weight.values_NK, splits_for(outputs, inner))

    def _parts(self, weight_NK: Tensor, splits: int) -> Tensor:
        return self._weights.new_empty(splits, len(self._normed), weight_NK.shape[0])
