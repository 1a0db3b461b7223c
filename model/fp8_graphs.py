"""An FP8 model on one GPU as CUDA graphs, one for each number of rows.

Everything is captured at start, the largest first, all into one pool of memory: a graph leaves nothing in it
that another needs. After that nothing is allocated, compiled or launched but graphs. Knows nothing of
sequences.

Letters: R rows  D hidden  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import triton
from torch import Tensor

from kernels.bf16_gemm import bf16_matmul
from kernels.fp8_rows import empty_rows
from kernels.greedy import greedy
from kernels.residual_norm import residual_norm
from model.config import ModelConfig
from model.fp8_cache import Fp8Cache
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import NARROW_SPLITS, WalkTables
from model.fp8_weights import Fp8Model, Fp8Mtp
from model.row_buffers import RowBuffers


class Fp8Graphs:
    """Computes the rows that stand in `buffers`. exact: no bit of a row depends on how many there are."""

    def __init__(
        self,
        config: ModelConfig,
        model: Fp8Model,
        cache: Fp8Cache,
        buffers: RowBuffers,
        *,
        num_positions: int,
        exact: bool = True,
    ) -> None:
        self._config, self._model, self._cache, self._buffers = config, model, cache, buffers
        self._exact = exact
        self._tables = WalkTables(config, num_positions, model.embedding_VD.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[str, int], torch.cuda.CUDAGraph] = {}
        self.late_compilations = 0

    @torch.inference_mode()
    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        """Capture walks of these numbers of rows and draws of those, where there are none yet."""
        triton.knobs.runtime.jit_post_compile_hook = None  # now is the time to compile
        jobs: list[tuple[str, int, Callable[[int], None]]] = []
        for count in sorted(rows, reverse=True):
            jobs.append(("walk", count, self._walk))
            if self._model.mtp is not None:
                jobs.append(("mtp", count, self._walk_mtp))
        jobs += [("draw", count, self._draw) for count in sorted(draws, reverse=True)]
        for name, count, body in jobs:
            if (name, count) not in self._graphs:
                self._graphs[name, count] = self._captured(body, count)
        triton.knobs.runtime.jit_post_compile_hook = self._count_compilation

    def walk(self, rows: int) -> None:
        """Through all layers, from `ids` to hidden_RD."""
        self._graphs["walk", rows].replay()

    def walk_mtp(self, rows: int) -> None:
        """Through the MTP layer, from given_RD and the `ids` that follow to hidden_RD."""
        self._graphs["mtp", rows].replay()

    def draw(self, rows: int) -> None:
        """From the `places` of hidden_RD to logits_RV and drawn_3R."""
        self._graphs["draw", rows].replay()

    def _captured(self, body: Callable[[int], None], rows: int) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            body(rows)  # compiles
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            body(rows)
        return graph

    def _walk(self, rows: int) -> None:
        buffers, model = self._buffers, self._model
        hidden_RD = model.embedding_VD.index_select(0, buffers.of("ids", rows))
        step = DecodeStep(self._config, self._inputs(hidden_RD), self._tables, exact=self._exact)
        buffers.hidden_RD[:rows].copy_(step.run(model.layers, self._cache, model.last_norm_D))

    def _walk_mtp(self, rows: int) -> None:
        buffers, model = self._buffers, self._model
        mtp = model.mtp
        assert mtp is not None, "a model without an MTP layer drafts nothing"
        embedded_RD = model.embedding_VD.index_select(0, buffers.of("ids", rows))
        step = DecodeStep(
            self._config, self._inputs(torch.zeros_like(embedded_RD)), self._tables, exact=self._exact
        )
        hidden_RD = step.run(
            [mtp.layer],
            self._cache,
            mtp.norm_D,
            first_plane=self._config.num_layers,
            delta=self._joined(mtp, embedded_RD, buffers.given_RD[:rows]),
        )
        buffers.hidden_RD[:rows].copy_(hidden_RD)

    def _joined(self, mtp: Fp8Mtp, embedded_RD: Tensor, hidden_RD: Tensor) -> Tensor:
        """The parts of what the MTP layer starts from."""
        rows, width = embedded_RD.shape
        both_ND = torch.cat([embedded_RD, hidden_RD])
        normed_ND, eps = torch.empty_like(both_ND), self._config.rms_norm_eps
        for part, weight_D in enumerate((mtp.embedding_norm_D, mtp.hidden_norm_D)):
            own = slice(part * rows, (part + 1) * rows)
            unused = empty_rows(rows, width, both_ND.device)
            residual_norm(both_ND[own], None, weight_D, eps, normed_ND[own], unused)
        parts_SRD = self._tables.cos_TP.new_empty(NARROW_SPLITS, rows, width)
        bf16_matmul(torch.cat([normed_ND[:rows], normed_ND[rows:]], -1), mtp.join_DE, parts_SRD)
        return parts_SRD

    def _inputs(self, hidden_RD: Tensor) -> StepInputs:
        buffers, rows = self._buffers, len(hidden_RD)
        return StepInputs(
            hidden_RD=hidden_RD,
            positions_R=buffers.of("positions", rows),
            slots_R=buffers.of("slots", rows),
            lengths_R=buffers.of("lengths", rows),
            pages_RP=buffers.tables.pages_SP.index_select(0, buffers.of("seats", rows)),
        )

    def _draw(self, rows: int) -> None:
        buffers = self._buffers
        hidden_RD = buffers.hidden_RD.index_select(0, buffers.of("places", rows))
        logits_RV = buffers.logits_RV[:rows]
        bf16_matmul(hidden_RD, self._model.head_VD, logits_RV[None])
        tokens_R, logprobs_R, finite_R = buffers.drawn_3R[:, :rows]
        greedy(logits_RV, tokens_R, logprobs_R.view(torch.float32), finite_R)

    def _count_compilation(self, *_: object, **__: object) -> None:
        self.late_compilations += 1
