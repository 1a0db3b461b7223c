"""Samples as packed rows of token ids, by seed.

A batch is a pure function of (seed, split, index), made by whichever worker is free, so a run can be resumed
and two runs can be compared on the very same tokens. Knows nothing of the model.

Letters: B rows  T tokens of a row
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from demo.sample import Sample, Split
from demo.tasks import task_named
from ingress.encoding import encode_history, encode_messages
from ingress.specials import Segment, Special
from ingress.tokens import Tokenizer

# Shares of the samples (not of the tokens): needles and tools are several times longer than the others.
MIXTURE: Mapping[str, float] = {"sql": 0.52, "arithmetic": 0.16, "tool": 0.16, "needle": 0.1, "about": 0.06}
GIVE_UP = 24  # samples that found no room before a batch counts as full
AHEAD = 4  # batches in the making, per worker
LEAST_LEAPING, LEAPING_SHARE, MOST_LEAPS = 200, 0.5, 3  # tokens of a document, share of those, leaps
PROMPT_WEIGHT = 0.1  # of a token that the model reads, against 1 for one that it writes

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One sample in token ids; the first `prompt` of them are given."""

    sample: Sample
    ids: list[int]
    prompt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """tokens, documents: int64 [B, T]; document 0 is padding, the others number the samples from 1.

    positions: int64 [B, T], counted from each document's start, with leaps in long documents if asked for.
    weights: fp32 [B, T], of each token as something to predict. samples: by document number less one.
    """

    tokens_BT: Ints
    documents_BT: Ints
    positions_BT: Ints
    weights_BT: NDArray[np.float32]
    samples: Sequence[Sample]

    @property
    def fill(self) -> float:
        """Share of the places that hold a token."""
        return float((self.documents_BT > 0).mean())


class Encoder:
    """Samples to ids with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._text = functools.lru_cache(maxsize=4096)(tokenizer.encode_text)

    def encode(self, sample: Sample) -> Encoded:
        """The prompt as the endpoint would encode it, then what the model should write."""
        tools = list(sample.tools) or None
        prompt = encode_messages(sample.messages, thinking=sample.thinking, tools=tools)
        whole = encode_history([*sample.messages, sample.answer], thinking=sample.thinking, tools=tools)
        if whole[: len(prompt)] != prompt:
            raise ValueError(f"a {sample.task} sample's prompt is not the start of its conversation")
        given = self._ids(prompt)
        return Encoded(sample=sample, ids=given + self._ids(whole[len(prompt) :]), prompt=len(given))

    def text(self, ids: Iterable[int]) -> str:
        """What the model wrote, special tokens left out."""
        return self._tokenizer.decode(ids)

    def _ids(self, segments: Sequence[Segment]) -> list[int]:
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, Special):
                ids += self._tokenizer.encode_prompt([segment])
            else:
                ids += self._text(segment)
        return ids


def draw(rng: Random, split: Split) -> Sample:
    """A sample of the mixture."""
    task = rng.choices(list(MIXTURE), weights=list(MIXTURE.values()))[0]
    return task_named(task).draw(rng, split)


def generator(seed: int, *parts: object) -> Random:
    """A generator of its own for (seed, parts)."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))


def pack(
    source: Callable[[], Sample],
    encoder: Encoder,
    rows: int,
    length: int,
    positions_of: Callable[[int], Ints] = np.arange,
) -> Batch:
    """Draw until nothing more fits; a sample longer than a row is drawn again."""
    tokens, documents, positions = np.zeros((3, rows, length), dtype=np.int64)
    weights = np.zeros((rows, length), dtype=np.float32)
    used = [0] * rows
    samples: list[Sample] = []
    failures = 0
    while failures < GIVE_UP:
        encoded = encoder.encode(source())
        size = len(encoded.ids)
        row = next((row for row in range(rows) if used[row] + size <= length), None)
        if row is None:
            failures += 1
            continue
        samples.append(encoded.sample)
        at = slice(used[row], used[row] + size)
        tokens[row, at], documents[row, at] = encoded.ids, len(samples)
        positions[row, at] = positions_of(size)
        weights[row, at] = PROMPT_WEIGHT
        weights[row, used[row] + encoded.prompt : at.stop] = 1.0
        weights[row, used[row]] = 0.0  # nothing predicts a document's first token
        used[row] += size
    return Batch(
        tokens_BT=tokens,
        documents_BT=documents,
        positions_BT=positions,
        weights_BT=weights,
        samples=samples,
    )


def leaping(rng: Random, size: int, context: int) -> Ints:
    """Increasing positions below `context`, in a long document with leaps at random places.

    So distances as far as the context are learned from short rows (PoSE: Zhu et al. 2023, "Efficient context
    window extension of LLMs via positional skip-wise training").
    """
    positions = np.arange(size)
    if size < LEAST_LEAPING or rng.random() > LEAPING_SHARE:
        return positions
    room = context - size
    for _ in range(rng.randint(1, MOST_LEAPS)):
        leap = rng.randint(0, room)
        positions[rng.randrange(size) :] += leap
        room -= leap
    return positions


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What a worker needs to make batches. context: positions that leaps may reach; 0 for none."""

    directory: Path
    seed: int
    split: Split
    rows: int
    length: int
    context: int = 0

    def batch(self, index: int) -> Batch:
        rng, leaps = generator(self.seed, self.split, index), generator(self.seed, "leaps", index)
        return pack(
            lambda: draw(rng, self.split),
            make_encoder(self.directory),
            self.rows,
            self.length,
            (lambda size: leaping(leaps, size, self.context)) if self.context else np.arange,
        )

    def batches(self, first: int, count: int, workers: int) -> Iterator[Batch]:
        """Batches first .. first + count - 1 in order, made ahead by `workers` processes (0: by this one)."""
        indices = iter(range(first, first + count))
        if workers == 0:
            yield from map(self.batch, indices)
            return
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            ahead = deque(pool.submit(self._bare_batch, index) for index in islice(indices, AHEAD * workers))
            while ahead:
                batch = ahead.popleft().result()
                ahead.extend(pool.submit(self._bare_batch, index) for index in islice(indices, 1))
                yield batch

    def _bare_batch(self, index: int) -> Batch:
        """Without the samples, which training does not read: they would be most of what is sent."""
        return replace(self.batch(index), samples=())


@functools.cache
def make_encoder(directory: Path) -> Encoder:
    """The encoder of the tokenizer.json in `directory`, one per process."""
    return Encoder(Tokenizer.from_file(directory / "tokenizer.json"))
