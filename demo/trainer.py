"""The training loop's state: one step at a time.

Next-token and MTP loss on the model, KL on its indexers, bias steps on its gates. On CUDA a step is captured
as one graph per phase, because launching its thousands of small kernels would take longer than running them.
Knows nothing of files (demo/progress.py) and of where batches come from.

Letters: B rows  T tokens  L MoE layers with the MTP layer's last  E experts
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.attention import Attention
from demo.corpus import Batch
from demo.network import Network, Packed, Passed
from demo.parameters import BIAS, Parameters, is_indexer
from demo.settings import Settings

EAGER_STEPS = 4  # of a phase, before its graph is captured: lazy set-up must not be in the graph


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """Over the steps since the last reading. answer_loss: of answers alone. load_LE: pairs per expert."""

    loss: float
    answer_loss: float
    mtp_loss: float
    index_kl: float
    worst_load: float
    mean_load: float
    load_LE: Tensor


class Trainer:
    """Parameters, optimisers and the step counter."""

    def __init__(self, settings: Settings, network: Network) -> None:
        self.settings, self.network = settings, network
        self.step = 0
        self._device = network.parameters["model.norm.weight"].device
        learned = {name: value for name, value in network.parameters.items() if not name.endswith(BIAS)}
        self._model = {name: value for name, value in learned.items() if not is_indexer(name)}
        self._index = {name: value for name, value in learned.items() if is_indexer(name)}
        self._model_adam, self._index_adam = self._adam(self._model), self._adam(self._index)
        shape = (settings.rows, settings.length)
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=self._device)
        self._documents, self._positions = torch.zeros_like(self._tokens), torch.zeros_like(self._tokens)
        self._weights = torch.zeros(shape, device=self._device)
        self._gamma = torch.zeros((), device=self._device)
        config = network.config
        self._sums = torch.zeros(7, device=self._device)
        self._loads = torch.zeros(config.num_moe_layers + 1, config.num_experts, device=self._device)
        self._graph: tuple[Attention, torch.cuda.CUDAGraph] | None = None
        self._eager_left = EAGER_STEPS

    def train(self, batch: Batch) -> None:
        """One step; returns before the device is done."""
        phase = self.settings.phase(self.step)
        if self.step and phase != self.settings.phase(self.step - 1):
            self._graph, self._eager_left = None, EAGER_STEPS
        self._fill(batch)
        if self._device.type != "cuda":
            self._update(phase)
        elif self._graph is not None:
            self._graph[1].replay()
        elif self._eager_left:
            self._eager_left -= 1
            self._beside(phase)
        else:
            self._graph = (phase, self._capture(phase))
            self._graph[1].replay()
        self.step += 1

    def read(self) -> Means:
        """The means since the last reading; waits for the device."""
        loss, answer, mtp, index_kl, worst, mean, count = self._sums.tolist()
        loads = self._loads.clone().cpu()
        self._sums.zero_()
        self._loads.zero_()
        count = max(count, 1.0)
        return Means(
            loss=loss / count,
            answer_loss=answer / count,
            mtp_loss=mtp / count,
            index_kl=index_kl / count,
            worst_load=worst / count,
            mean_load=mean / count,
            load_LE=loads,
        )

    def state(self) -> Parameters:
        """Everything but the step that a resumed run needs, by name."""
        tensors = {f"parameters/{name}": value.detach() for name, value in self.network.parameters.items()}
        for group, adam in (("model", self._model_adam), ("index", self._index_adam)):
            for name, value in self._of(group).items():
                for kind, moment in adam.state.get(value, {}).items():
                    tensors[f"{group}/{kind}/{name}"] = moment
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Parameters, step: int) -> None:
        """Continue after `step` steps; raises KeyError for a tensor that this network lacks."""
        for key, saved in tensors.items():
            group, _, rest = key.partition("/")
            if group == "parameters":
                self.network.parameters[rest].copy_(saved)
                continue
            kind, _, name = rest.partition("/")
            adam = self._model_adam if group == "model" else self._index_adam
            device = self._device if kind != "step" or self._device.type == "cuda" else torch.device("cpu")
            adam.state[self._of(group)[name]][kind] = saved.to(device)
        self.step = step

    def _of(self, group: str) -> Parameters:
        return self._model if group == "model" else self._index

    def _adam(self, parameters: Parameters) -> torch.optim.AdamW:
        """Matrices decay; norms and biases do not."""
        is_cuda = self._device.type == "cuda"
        matrices = [value for value in parameters.values() if value.dim() > 1]
        vectors = [value for value in parameters.values() if value.dim() <= 1]
        return torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.settings.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=torch.zeros((), device=self._device) if is_cuda else 0.0,
            betas=(0.9, 0.95),
            capturable=is_cuda,
            fused=is_cuda,
        )

    def _fill(self, batch: Batch) -> None:
        for buffer, values in (
            (self._tokens, batch.tokens_BT),
            (self._documents, batch.documents_BT),
            (self._positions, batch.positions_BT),
            (self._weights, batch.weights_BT),
        ):
            buffer.copy_(torch.from_numpy(values), non_blocking=True)
        self._gamma.fill_(self.settings.gamma_at(self.step))
        for adam, lr in (
            (self._model_adam, self.settings.lr(self.step)),
            (self._index_adam, self.settings.index_lr_at(self.step)),
        ):
            for group in adam.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = lr

    def _update(self, phase: Attention) -> None:
        """Forward, backward, and one step of whatever this phase trains."""
        self._model_adam.zero_grad(set_to_none=True)
        self._index_adam.zero_grad(set_to_none=True)
        passed = self.network.forward(
            Packed(tokens_BT=self._tokens, documents_BT=self._documents, positions_BT=self._positions),
            attention=phase,
        )
        loss, answer_loss = self._losses(passed.hidden_BTD, 1)
        mtp_loss, _ = self._losses(passed.mtp_BTD, 2)
        settings = self.settings
        if phase == "warmup":
            passed.index_loss.backward()  # type: ignore[no-untyped-call]
        else:
            total = loss + settings.mtp_weight * mtp_loss + settings.sequence_weight * passed.sequence_loss
            (total + passed.index_loss).backward()
            torch.nn.utils.clip_grad_norm_(self._model.values(), settings.clip_norm)
            self._model_adam.step()
            self.network.move_biases(passed.loads, self._gamma)
        if phase != "dense":
            torch.nn.utils.clip_grad_norm_(self._index.values(), settings.clip_norm)
            self._index_adam.step()
        self._note(passed, loss.detach(), answer_loss, mtp_loss.detach())

    def _losses(self, hidden_BTD: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy of the token `ahead` places on, within the same document.

        And, for the curves, that of the answers' tokens alone: names in prompts cannot be foreseen and would
        hide it.
        """
        target = self._tokens.roll(-ahead, 1)
        weights = self._weights.roll(-ahead, 1) * (self._documents.roll(-ahead, 1) == self._documents)
        weights = weights * (torch.arange(target.shape[1], device=self._device) < target.shape[1] - ahead)
        nll = F.cross_entropy(
            self.network.logits(hidden_BTD).flatten(0, 1), target.flatten(), reduction="none"
        )
        answers = (weights == 1.0).flatten()
        answer_loss = (nll.detach() * answers).sum() / answers.sum().clamp(min=1)
        return (nll * weights.flatten()).sum() / weights.sum().clamp(min=1e-6), answer_loss

    @torch.no_grad()
    def _note(self, passed: Passed, loss: Tensor, answer_loss: Tensor, mtp_loss: Tensor) -> None:
        loads = torch.stack(passed.loads)
        peaks = loads.amax(-1) / loads.mean(-1)
        one = torch.ones_like(loss)
        self._sums += torch.stack(
            [loss, answer_loss, mtp_loss, passed.index_loss.detach(), peaks.max(), peaks.mean(), one]
        )
        self._loads += loads

    def _beside(self, phase: Attention) -> None:
        """A step on a stream of its own, as capture wants of the steps before it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._update(phase)
        torch.cuda.current_stream().wait_stream(stream)

    def _capture(self, phase: Attention) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._update(phase)
        return graph
