"""Where an expert actor gets its experts from.

Files, and peers that hold them: one source after another is asked for each expert, until one has what is
known of it; what the others said is told, never dropped. Knows nothing of who says what is to be held.

Errors: CheckpointError.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import torch

from actors.expert_peer import PeerFailed
from actors.held import FILES, HeldExperts
from model.expert_form import digest_of
from model.experts import Mlp
from model.load import Reader, load_expert
from model.shards import CheckpointError
from router.view import Pair

logger = logging.getLogger(__name__)

NOTHING_KNOWN: Mapping[Pair, int] = MappingProxyType({})


class Source(Protocol):
    """name: for people. origin: for the metrics."""

    @property
    def name(self) -> str: ...

    @property
    def origin(self) -> str: ...

    def has(self, pair: Pair) -> bool:
        """Whether it is worth asking."""

    def expert(self, pair: Pair) -> tuple[Mlp, int]:
        """Weights as they are known, and their digest. Raises CheckpointError or PeerFailed."""


class Files:
    """The checkpoint. open_reader: called when the first expert is wanted, and never again if it fails.

    known: digests of experts that were read before, by anybody: what is read must be that. Copies that differ
    would make the text depend on who answers.
    """

    name = origin = FILES

    def __init__(
        self,
        open_reader: Callable[[], Reader],
        dtype: torch.dtype,
        known: Mapping[Pair, int] = NOTHING_KNOWN,
    ) -> None:
        self._open, self._dtype, self._known = open_reader, dtype, known
        self.reader: Reader | None = None
        self._failure = ""

    def has(self, _: Pair) -> bool:
        return not self._failure

    def expert(self, pair: Pair) -> tuple[Mlp, int]:
        if self.reader is None:
            try:
                self.reader = self._open()
            except CheckpointError as error:
                self._failure = str(error)
                raise
        layer, expert = pair
        weights = load_expert(self.reader, layer, expert, self._dtype)
        digest = digest_of(weights)
        if self._known.get(pair, digest) != digest:
            raise CheckpointError(
                f"expert {expert} of layer {layer} is not what was read of it before: a shard has changed or "
                "is damaged; put back the files that this cluster was started with"
            )
        return weights, digest


@dataclass(slots=True)
class Origins:
    """How many experts each source had, by name, and what was wrong first with each that failed."""

    experts: Counter[str] = field(default_factory=Counter)
    problems: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        taken = ", ".join(f"{count} from {name}" for name, count in self.experts.items())
        problems = "".join(f"; {name}: {problem}" for name, problem in self.problems.items())
        return (taken.replace(" from ", " experts from ", 1) or "no experts") + problems


def load_experts(held: HeldExperts, sources: Sequence[Source], pairs: Iterable[Pair]) -> Origins:
    """Take experts, one at a time so that only one is in memory twice, and hold each as it comes.

    sources: in the order in which they are asked; peers in turns, and last whoever has failed. Raises
    CheckpointError at the first expert that nobody has.
    """
    origins = Origins()
    preferred = list(dict.fromkeys(source.origin for source in sources))

    def turn(source: Source) -> tuple[bool, int, int]:
        return source.name in origins.problems, preferred.index(source.origin), origins.experts[source.name]

    for pair in sorted(pairs):
        source, weights, digest = _first_that_has(pair, sorted(sources, key=turn), origins)
        held.take(pair, weights, digest, source.origin)
        origins.experts[source.name] += 1
    return origins


def _first_that_has(pair: Pair, sources: Sequence[Source], origins: Origins) -> tuple[Source, Mlp, int]:
    problems: dict[str, str] = {}
    for source in sources:
        if not source.has(pair):
            continue
        try:
            return source, *source.expert(pair)
        except (CheckpointError, PeerFailed) as error:
            problems[source.name] = str(error)
            if source.name not in origins.problems:
                logger.warning("expert %d of layer %d from %s: %s", pair[1], pair[0], source.name, error)
                origins.problems[source.name] = str(error)
    raise CheckpointError(_nobody_has(pair, origins.problems | problems))


def _nobody_has(pair: Pair, problems: Mapping[str, str]) -> str:
    if problems.keys() == {FILES}:
        return problems[FILES]
    said = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return f"expert {pair[1]} of layer {pair[0]} cannot be had from anybody: {said}"
