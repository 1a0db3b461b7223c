"""What a network knows, measured on samples that it never saw.

Every token is predicted from the right ones before it, in packed batches; an answer all of whose tokens are
predicted is the answer that greedy decoding would give. Knows nothing of training and of files.

Letters: B rows  T tokens  L MoE layers with the MTP layer's last  E experts  K experts per token
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from demo import needle
from demo.attention import Attention
from demo.corpus import MIXTURE, Batch, generator, make_encoder, pack
from demo.network import Network, Packed
from demo.sample import Sample, Split
from demo.tasks import task_named

TOPKS = (8, 16, 32, 64, 128, 256, 0)  # 0: dense attention
NEEDLE_TOKENS = 512
HELD_OUT: Split = "held_out"
ROWS = 8  # of a batch that is measured


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """One batch as the network saw it. nll, said, hits and drafts stand at the token that was predicted.

    said_BT: the likeliest token. hits_BT: it was right. drafts_BT: the MTP layer, a token earlier, named the
    same likeliest token, so a draft would have been accepted. choices_LBTK: experts.
    """

    batch: Batch
    nll_BT: NDArray[np.float32]
    said_BT: NDArray[np.int64]
    hits_BT: NDArray[np.bool_]
    drafts_BT: NDArray[np.bool_]
    choices_LBTK: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Glance:
    """choices_LNTK: experts of N rows, sorted per token. exact: by task, share of the answers known."""

    choices_LNTK: NDArray[np.uint8]
    exact: Mapping[str, float]


@dataclass(slots=True)
class _Tally:
    loss: float = 0.0
    tokens: int = 0
    hits: int = 0
    drafts: int = 0
    exact: int = 0
    samples: int = 0
    load_LE: NDArray[np.int64] | None = field(default=None)


class Examiner:
    """Fixed batches of held-out samples; the same for every run and every moment of a run."""

    def __init__(self, directory: Path, *, seed: int, length: int, batches: int, rows: int = ROWS) -> None:
        self._encoder = encoder = make_encoder(directory)

        def packed(split: Split, count: int) -> list[Batch]:
            """Without a task whose samples are all longer than a row."""
            made = (
                pack(_drawing(task, split, seed, index), encoder, rows, length)
                for task in MIXTURE
                for index in range(count)
            )
            return [batch for batch in made if batch.samples]

        self._mixed, self._familiar = packed(HELD_OUT, batches), packed("train", max(1, batches // 4))
        long = min(NEEDLE_TOKENS, length // 2)
        self._needles = [pack(_needles(seed, index, long), encoder, rows, length) for index in range(batches)]

    def examine(self, network: Network, attention: Attention) -> dict[str, Any]:
        """All of the report's figures that need no endpoint, as run-NAME.json's `final` has them."""
        tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        for batch in self._mixed:
            _add(tallies, _read(network, batch, attention, None), network.config.num_experts)
        points = [self._point(network, topk) for topk in (TOPKS if attention == "sparse" else (0,))]
        familiar: defaultdict[str, _Tally] = defaultdict(_Tally)
        for batch in self._familiar:
            _add(familiar, _read(network, batch, attention, None), network.config.num_experts)
        seen = {"exact_match_familiar": _exact(familiar), "topk_sweep": points}
        return seen | _figures(tallies)

    def tokens_right(self, network: Network, attention: Attention) -> float:
        """Share of the answer tokens of one batch per task that are predicted."""
        right, tokens = 0, 0
        for batch in self._one_per_task():
            written = batch.weights_BT == 1.0
            right += int(_read(network, batch, attention, None).hits_BT[written].sum())
            tokens += int(written.sum())
        return right / tokens

    def glance(self, network: Network, attention: Attention) -> Glance:
        """One fixed batch per task: quick enough to be looked at while training goes on."""
        reads = [_read(network, batch, attention, None) for batch in self._one_per_task()]
        exact = {}
        for read in reads:
            known = [one for _, _, one in _answers(read)]
            exact[read.batch.samples[0].task] = sum(known) / len(known)
        choices = np.concatenate([np.sort(read.choices_LBTK, -1) for read in reads], 1)
        return Glance(choices_LNTK=choices, exact=exact)

    def _one_per_task(self) -> list[Batch]:
        return list({batch.samples[0].task: batch for batch in reversed(self._mixed)}.values())

    def _point(self, network: Network, topk: int) -> dict[str, Any]:
        attention: Attention = "sparse" if topk else "dense"
        loss, tokens, right, asked = 0.0, 0, 0, 0
        for batch in self._mixed:
            read = _read(network, batch, attention, topk or None)
            counted = batch.weights_BT > 0
            loss += float(read.nll_BT[counted].sum())
            tokens += int(counted.sum())
        for batch in self._needles:
            read = _read(network, batch, attention, topk or None)
            for sample, where, _ in _answers(read):
                # Names and kinds are not what is measured here: only the value that was found.
                right += needle.is_right(sample, self._encoder.text(read.said_BT[where].tolist()))
                asked += 1
        return {
            "topk": topk,
            "perplexity": float(np.exp(loss / tokens)),
            "needle_accuracy": right / max(1, asked),
        }


def changed_share(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """Share of the experts chosen after that were not chosen before, over tokens and layers."""
    kept = (after[..., :, None] == before[..., None, :]).any(-1)
    return float(1.0 - kept.mean())


@torch.no_grad()
def _read(network: Network, batch: Batch, attention: Attention, topk: int | None) -> Read:
    device = network.parameters["model.norm.weight"].device
    tokens = torch.from_numpy(batch.tokens_BT).to(device)
    documents = torch.from_numpy(batch.documents_BT).to(device)
    positions = torch.from_numpy(batch.positions_BT).to(device)
    packed = Packed(tokens_BT=tokens, documents_BT=documents, positions_BT=positions)
    passed = network.forward(packed, attention=attention, topk=topk)
    logits = network.logits(passed.hidden_BTD)
    best = logits.argmax(-1)
    nll = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    drafts = network.logits(passed.mtp_BTD).argmax(-1)
    ahead = F.pad(drafts[:, :-2] == best[:, 1:-1], (2, 0), value=False)
    choices = torch.stack(passed.choices).unflatten(1, tokens.shape)
    return Read(
        batch=batch,
        nll_BT=F.pad(nll.view(len(tokens), -1), (1, 0)).cpu().numpy(),
        said_BT=F.pad(best[:, :-1], (1, 0)).cpu().numpy(),
        hits_BT=F.pad(best[:, :-1] == tokens[:, 1:], (1, 0), value=False).cpu().numpy(),
        drafts_BT=ahead.cpu().numpy(),
        choices_LBTK=choices.to(torch.uint8).cpu().numpy(),
    )


def _answers(read: Read) -> Iterator[tuple[Sample, NDArray[np.bool_], bool]]:
    """(sample, where its answer stands [B, T], whether all of it was predicted)."""
    written = read.batch.weights_BT == 1.0
    for number, sample in enumerate(read.batch.samples, start=1):
        where = written & (read.batch.documents_BT == number)
        yield sample, where, bool(read.hits_BT[where].all())


def _add(tallies: Mapping[str, _Tally], read: Read, num_experts: int) -> None:
    for sample, where, exact in _answers(read):
        tally = tallies[sample.task]
        tally.loss += float(read.nll_BT[where].sum())
        tally.tokens += int(where.sum())
        tally.hits += int(read.hits_BT[where].sum())
        tally.drafts += int(read.drafts_BT[where].sum())
        tally.exact += exact
        tally.samples += 1
    tally = tallies[read.batch.samples[0].task]  # a measured batch holds one task
    counts = _load(read, num_experts)
    tally.load_LE = counts if tally.load_LE is None else tally.load_LE + counts


def _load(read: Read, num_experts: int) -> NDArray[np.int64]:
    """Choices per layer and expert, padding left out."""
    chosen = read.choices_LBTK[:, read.batch.documents_BT > 0].reshape(len(read.choices_LBTK), -1)
    return np.stack([np.bincount(layer, minlength=num_experts) for layer in chosen])


def _figures(tallies: Mapping[str, _Tally]) -> dict[str, Any]:
    shares = {task: _shares(tally.load_LE) for task, tally in tallies.items() if tally.load_LE is not None}
    # As in training, where a task's weight is its share of the samples times their length.
    mixed = np.average(
        [np.array(shares[task]) for task in shares],
        axis=0,
        weights=[MIXTURE[task] * _mean_tokens(tallies[task]) for task in shares],
    )
    return {
        "validation_loss": sum(t.loss for t in tallies.values()) / sum(t.tokens for t in tallies.values()),
        "validation_by_task": {
            task: {
                "loss": tally.loss / tally.tokens,
                "accuracy": tally.hits / tally.tokens,
                "mtp_acceptance": tally.drafts / tally.tokens,
            }
            for task, tally in tallies.items()
        },
        "exact_match": _exact(tallies),
        "expert_load": mixed.tolist(),
        "load_max_over_mean": [float(max(layer) * len(layer)) for layer in mixed],
        "experts_by_task": shares,
    }


def _exact(tallies: Mapping[str, _Tally]) -> dict[str, dict[str, int]]:
    return {task: {"right": tally.exact, "of": tally.samples} for task, tally in tallies.items()}


def _mean_tokens(tally: _Tally) -> float:
    assert tally.load_LE is not None, "only tasks with a load are asked"
    return float(tally.load_LE[0].sum() / tally.samples)


def _shares(load_LE: NDArray[np.int64]) -> list[list[float]]:
    shares: list[list[float]] = (load_LE / load_LE.sum(-1, keepdims=True)).tolist()
    return shares


def _drawing(task: str, split: Split, seed: int, index: int) -> Callable[[], Sample]:
    rng = generator(seed, "examination", task, index)
    return lambda: task_named(task).draw(rng, split)


def _needles(seed: int, index: int, tokens: int) -> Callable[[], Sample]:
    rng = generator(seed, "needles", index)
    return lambda: needle.draw_at(rng, HELD_OUT, tokens=tokens, depth=rng.random())
