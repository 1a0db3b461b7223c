"""A decode step of one GPU: every layer, without the host; its experts may be elsewhere.

All buffers are made once for a number of rows, nothing depends on values, so that the whole step can be
captured in one CUDA graph. Rows without a token have slot -1 and length 0. Knows nothing of sequences,
embedding or head.

Letters: R rows  D hidden  N heads  X columns of the up projection  J chosen slots  P pages of a sequence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.absorb import absorb_query, absorb_value
from kernels.bf16_gemm import bf16_matmul
from kernels.expert_gemm import tile_rows_for
from kernels.expert_mlp import expert_mlp
from kernels.fp8_gemm import fp8_matmul, splits_for
from kernels.fp8_rows import Fp8Rows, Fp8Weight
from kernels.index_logits import IndexCache, decode_config_for, index_logits_decode
from kernels.index_query import index_query
from kernels.routes import Routes
from kernels.select_topk import select_topk
from kernels.sparse_mla import config_for as attention_config_for
from kernels.sparse_mla import sparse_mla
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_walk import NARROW_SPLITS, Delta, Walk, WalkTables
from model.fp8_weights import Fp8Layer, Fp8Moe


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


class DecodeStep(Walk):
    """The walk for one number of rows. exact: no bit of a row depends on how many rows there are."""

    def __init__(
        self, config: ModelConfig, inputs: StepInputs, tables: WalkTables, *, exact: bool = True
    ) -> None:
        rows, device = inputs.hidden_RD.shape[0], inputs.hidden_RD.device
        tile_rows = tile_rows_for(rows * config.num_experts_per_token / config.num_experts)
        super().__init__(config, rows, tables, tile_rows)
        assert config.indexer is not None, "latent_shape refuses a model without one"
        self._inputs = inputs
        self._attention = attention_config_for(rows, exact=exact)
        self._beside = tables.beside  # the choice of keys runs here while the queries go to the latents
        heads, width = config.indexer.num_heads, self._shape.index
        self._query = torch.empty(
            rows, config.num_heads, config.latent_dim, dtype=torch.float16, device=device
        )
        self._index_query = torch.empty(rows, heads, width, dtype=torch.float8_e4m3fn, device=device)
        self._index_weights = torch.empty(rows, heads, device=device)

    def run(
        self,
        layers: Sequence[Fp8Layer],
        cache: Fp8Cache,
        last_norm_D: Tensor,
        *,
        first_plane: int = 0,
        delta: Delta = None,
    ) -> Tensor:
        """bf16 [R, D] after the last norm; the inputs' hidden_RD is the residual by then."""
        own = self._inputs
        return self._walk(
            own.hidden_RD,
            own.positions_R,
            own.slots_R,
            layers,
            cache,
            last_norm_D,
            first_plane=first_plane,
            delta=delta,
        )

    def _see(self, plane: int, up_RX: Tensor, heads_SRH: Tensor, kv_b: Fp8Weight, cache: Fp8Cache) -> None:
        here = torch.cuda.current_stream()
        self._beside.wait_stream(here)
        with torch.cuda.stream(self._beside):
            slots_RJ = self._choose(up_RX, heads_SRH, cache.keys[plane])
        absorb_query(up_RX, kv_b, self._cos, self._sin, self._inputs.positions_R, self._query)
        here.wait_stream(self._beside)
        gathered_RNC = sparse_mla(
            self._query,
            slots_RJ,
            cache.latents[plane],
            scale=self._config.softmax_scale,
            config=self._attention,
        )
        absorb_value(gathered_RNC, kv_b, self._room.values)

    def _choose(self, up_RX: Tensor, heads_SRH: Tensor, keys: IndexCache) -> Tensor:
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
            keys,
            inputs.pages_RP,
            inputs.lengths_R,
            config=decode_config_for(*inputs.pages_RP.shape),
        )
        return select_topk(logits_RL, inputs.lengths_R, inputs.pages_RP)

    def _narrow(self, weight_ND: Tensor) -> Tensor:
        normed_RD = self._room.normed_RD
        parts_SRN = normed_RD.new_empty(NARROW_SPLITS, len(normed_RD), len(weight_ND), dtype=torch.float32)
        bf16_matmul(normed_RD, weight_ND, parts_SRN)
        return parts_SRN

    def _sum(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        outputs, inner = weight.values_NK.shape
        parts_SRN = x.scale_GR.new_empty(splits_for(outputs, inner), len(x.values_RK), outputs)
        fp8_matmul(x, weight, parts_SRN)
        return parts_SRN

    def _whole(self, x: Fp8Rows, weight: Fp8Weight) -> Tensor:
        out_RN = self._room.normed_RD.new_empty(len(x.values_RK), len(weight.values_NK))
        fp8_matmul(x, weight, out_RN)
        return out_RN

    def _experts(self, weights: Fp8Moe, routes: Routes) -> None:
        room = self._room
        expert_mlp(room.normed, weights.gate_up, weights.down, routes, room.between, room.pairs_PD)
