"""An FP8 model on one GPU as CUDA graphs, one for each number of rows.

Everything is captured at start, the largest first, all into one pool of memory: a graph leaves nothing in it
that another needs. After that nothing is compiled; but for long chunks, whose kernels take longer than their
launches, nothing is launched but graphs. Knows nothing of sequences.

Letters: R rows  D hidden  V vocabulary  L MoE layers  E experts
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import triton
from torch import Tensor

from kernels.bf16_gemm import bf16_matmul
from kernels.count_pairs import count_pairs
from kernels.greedy import greedy
from model.config import ModelConfig
from model.device_sampler import sample_from_device
from model.fp8_cache import Fp8Cache
from model.fp8_prefill import PrefillStep, Span
from model.fp8_start import Start, join_few, join_many, start_of_model, start_of_mtp
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import Walk, WalkTables
from model.fp8_weights import Fp8Dense, Fp8Model
from model.row_buffers import RowBuffers, RowSpan
from model.sampler import Draw, Drawn
from model.sampling import Sampling

WARM_UP_ROWS = 61


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
        self._exact, self._num_positions = exact, num_positions
        self._tables = WalkTables(config, num_positions, model.embedding_VD.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[tuple[str, int], torch.cuda.CUDAGraph] = {}
        self._many: PrefillStep | None = None
        device = model.embedding_VD.device
        self._pairs_LE = torch.zeros(
            len(config.routed_layers), config.num_experts, dtype=torch.int64, device=device
        )
        self._reading = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.late_compilations = 0

    @torch.inference_mode()
    def prepare(self, rows: Iterable[int], draws: Iterable[int]) -> None:
        """Capture walks of these numbers of rows and draws of those, where there are none yet."""
        triton.knobs.runtime.jit_post_compile_hook = None  # now is the time to compile
        for count in sorted(rows, reverse=True):
            self._capture("walk", count, self._walk)
            if self._model.mtp is not None:
                self._capture("mtp", count, self._walk_mtp)
        for count in sorted(draws, reverse=True):
            self._capture("draw", count, self._draw)
        told = Sampling(max_tokens=1, logprobs=0)
        self.sample([0], [Draw(sampling=told, position=0, prompt_ids=(), emitted_ids=())])  # compiles
        if self._buffers.most_many and self._many is None:
            self._prepare_many()
        self._pairs_LE.zero_()  # the rows above were nobody's
        triton.knobs.runtime.jit_post_compile_hook = self._count_compilation

    def walk(self, rows: int, *, mtp: bool = False) -> None:
        """The first rows through all layers, from `ids` to hidden_RD.

        mtp: through the MTP layer, from given_RD and the `ids` that follow.
        """
        self._graphs["mtp" if mtp else "walk", rows].replay()

    @torch.inference_mode()
    def walk_many(self, spans: Sequence[RowSpan], *, mtp: bool = False) -> None:
        """The same for the rows of these spans, which stand one after the other; launched one by one."""
        assert self._many is not None, "the buffers have no room for long chunks"
        buffers, first = self._buffers, spans[0].first_row
        rows = spans[-1].first_row + spans[-1].num_rows - first
        placed = [
            Span(
                first_row=span.first_row - first,
                num_rows=span.num_rows,
                first_position=span.first_position,
                pages_P=buffers.tables.pages_SP[span.seat],
            )
            for span in spans
        ]
        ids_R, given_RD = buffers.of("ids", rows, first), buffers.given_RD[first : first + rows]
        start = start_of_model(self._model, ids_R)
        if mtp:
            start = start_of_mtp(self._config, self._model, ids_R, given_RD, join_many)
        hidden_RD = self._many.run(
            start.hidden_RD,
            placed,
            start.layers,
            self._cache,
            start.last_norm_D,
            first_plane=start.first_plane,
            delta=start.delta,
        )
        self._count(self._many, start, buffers.of("slots", rows, first))
        buffers.hidden_RD[first : first + rows].copy_(hidden_RD)

    def draw(self, rows: int) -> None:
        """From the `places` of hidden_RD to logits_RV and drawn_3R."""
        self._graphs["draw", rows].replay()

    @torch.inference_mode()
    def logits(self, hidden_RD: Tensor) -> Tensor:
        """fp32 [R, V], in memory of their own, of at most 64 rows."""
        logits_RV = hidden_RD.new_empty(len(hidden_RD), len(self._model.head_VD), dtype=torch.float32)
        bf16_matmul(hidden_RD, self._model.head_VD, logits_RV[None])
        return logits_RV

    @torch.inference_mode()
    def sample(self, rows: Sequence[int], draws: Sequence[Draw]) -> list[Drawn]:
        """A token for each of these rows of logits_RV, finite ones, that asks for more than the likeliest."""
        return sample_from_device(self._buffers.logits_RV, rows, draws)

    def expert_pairs(self) -> Tensor:
        """int64 [L, E] on the CPU: pairs (token, expert) of all walks since `prepare`.

        From any thread and beside a step, which neither waits nor is waited for: a part of it may be counted.
        """
        with torch.cuda.stream(self._reading):
            return self._pairs_LE.cpu()

    def _capture(self, name: str, rows: int, body: Callable[[int], None]) -> None:
        if (name, rows) in self._graphs:
            return
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
        self._graphs[name, rows] = graph

    def _prepare_many(self) -> None:
        """Compile what long chunks launch.

        Some kernels differ with the power of two of the keys seen, some at rows that are no multiple of four.
        """
        buffers = self._buffers
        self._many = PrefillStep(self._config, buffers.most_many, self._tables, exact=self._exact)
        ends = {self._num_positions, *(1 << n for n in range(6, self._num_positions.bit_length()))}
        for end in sorted(ends):
            rows = min(WARM_UP_ROWS, end)
            spans = [
                RowSpan(first_row=first_row, num_rows=rows, first_position=end - rows, seat=0)
                for first_row in (0, rows)
            ]
            self.walk_many(spans)
            if self._model.mtp is not None:
                self.walk_many(spans, mtp=True)
        self._cache.clear_null_page()  # where the rows were written: nobody has pages yet

    def _walk(self, rows: int) -> None:
        self._step(start_of_model(self._model, self._buffers.of("ids", rows)))

    def _walk_mtp(self, rows: int) -> None:
        ids_R, given_RD = self._buffers.of("ids", rows), self._buffers.given_RD[:rows]
        self._step(start_of_mtp(self._config, self._model, ids_R, given_RD, join_few))

    def _step(self, start: Start) -> None:
        buffers, rows = self._buffers, len(start.hidden_RD)
        inputs = StepInputs(
            hidden_RD=start.hidden_RD,
            positions_R=buffers.of("positions", rows),
            slots_R=buffers.of("slots", rows),
            lengths_R=buffers.of("lengths", rows),
            pages_RP=buffers.tables.pages_SP.index_select(0, buffers.of("seats", rows)),
        )
        step = DecodeStep(self._config, inputs, self._tables, exact=self._exact)
        hidden_RD = step.run(
            start.layers,
            self._cache,
            start.last_norm_D,
            first_plane=start.first_plane,
            delta=start.delta,
        )
        self._count(step, start, inputs.slots_R)
        buffers.hidden_RD[:rows].copy_(hidden_RD)

    def _count(self, walk: Walk, start: Start, slots_R: Tensor) -> None:
        """Add to the pairs what its gates chose for rows with a token."""
        dense = sum(isinstance(layer.ffn, Fp8Dense) for layer in start.layers)  # they come first
        place = start.first_plane + dense - self._config.num_dense_layers
        experts_LRK = walk.chosen()[dense : len(start.layers)]
        count_pairs(experts_LRK, slots_R, self._pairs_LE[place : place + len(experts_LRK)])

    def _draw(self, rows: int) -> None:
        buffers = self._buffers
        hidden_RD = buffers.hidden_RD.index_select(0, buffers.places(rows))
        logits_RV = buffers.logits_RV[:rows]
        bf16_matmul(hidden_RD, self._model.head_VD, logits_RV[None])
        tokens_R, logprobs_R, finite_R = buffers.drawn_3R[:, :rows]
        greedy(logits_RV, tokens_R, logprobs_R.view(torch.float32), finite_R)

    def _count_compilation(self, *_: object, **__: object) -> None:
        self.late_compilations += 1
