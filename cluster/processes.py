"""Processes, and what they answer: the seam to Ray.

Four deeds: spawn one, ask it something, wait for answers, end it; and a memory that outlives the asker. Ray's
own is cluster/ray_processes.py, a fake one drives the simulation. Knows nothing of what is asked.

Errors: AnswerLost > WorkFailed, ProcessDied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from actors.options import Loaded
from router.view import Pair

M = TypeVar("M", bound=Callable[..., Any])


def beside(lane: str) -> Callable[[M], M]:
    """A method that answers beside a process's main work; a lane has threads of its own.

    The mark is what ray.method leaves, in every process that imports the class; to write it takes no Ray.
    """

    def mark(method: M) -> M:
        method.__ray_concurrency_group__ = lane  # type: ignore[attr-defined]
        return method

    return mark


class AnswerLost(RuntimeError):  # noqa: N818 - named for what happened, as the rest of the tree
    """There will be no answer; the text says why."""


class WorkFailed(AnswerLost):
    """The process lives, but could not do what it was asked."""


class ProcessDied(AnswerLost):
    """It is gone, or cannot be reached."""


class Answer(Protocol):
    """To a question that was asked. reference: what other processes may wait for in its place."""

    @property
    def reference(self) -> Any: ...

    def is_done(self) -> bool: ...

    def get(self) -> Any:
        """Waits for it; raises AnswerLost."""
        ...


class Process(Protocol):
    """One actor process."""

    def ask(self, question: str, *arguments: object) -> Answer:
        """Returns at once."""
        ...

    def end(self, pid: int | None) -> None:
        """Whatever state it is in, nothing comes from it any more. pid: if it is known."""
        ...


class Processes(Protocol):
    """Where they come from. number: no two of a cluster ever share one."""

    def spawn(self, number: int, seat: str | None = None) -> Process:
        """Returns at once; it starts meanwhile. seat: only on a node that has one free (cluster/hosts.py)."""
        ...

    def living(self) -> list[tuple[int, Process]]:
        """Of all that were ever spawned, those that have not ended."""
        ...

    def wait(self, answers: Sequence[Answer], timeout_s: float, *, for_all: bool = False) -> None:
        """Until one of them, or all, is done, or the time is up."""
        ...


class Memory(Protocol):
    """One value that outlives whoever wrote it."""

    def recall(self) -> bytes | None: ...

    def remember(self, value: bytes) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Pulse:
    """A sign of life. has_ended: there is nothing more to come, though the process lives.

    epoch: of the view that it computes with; it asks nobody by an older one any more. convicted: (actor id,
    incarnation) of experts that it caught sending rubbish. num_sequences: that it has. is_handing_over: of
    these, some are on their way to others, and get on.
    """

    has_ended: bool
    epoch: int
    convicted: tuple[tuple[str, int], ...]
    num_sequences: int = 0
    is_handing_over: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Introduction:
    """What an actor tells a controller that is new. epoch: of the newest view that it knows.

    loaded: None if it has nothing, and is warm. pairs: the experts that it holds. digests: of those that
    it has read.
    """

    actor_id: str = ""
    loaded: Loaded | None = None
    epoch: int = 0
    pairs: frozenset[Pair] = frozenset()
    digests: Mapping[Pair, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What an ingress tells the controller each time it asks: who it is, and where its metrics are."""

    identity: str
    host: str
    metrics_port: int
