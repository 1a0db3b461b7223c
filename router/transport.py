"""How rows travel: four verbs.

post, poll, cancel, set_view. An exchange (router/exchange.py) decides what goes where and what to do about a
loss; a transport only moves it. Knows nothing of retries.

Errors: RouterError > PeerLost, NoReplica.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from router.assign import Ints
from router.view import ActorId, View


class RouterError(Exception):
    """Something on the way to or from an expert went wrong."""


class PeerLost(RouterError):  # noqa: N818 - an event of normal life, not an error of ours
    """The connection to a peer is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchKey:
    """Names one request for ever; replies repeat it.

    `attempt` makes a retry distinct from what it replaces.
    """

    KIND: ClassVar[str] = "key"
    epoch: int
    step: int
    layer: int
    micro_batch: int
    attempt: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """Rows for one expert actor: rows_RD, and for each pair which row and which expert."""

    key: DispatchKey
    rows_RD: Tensor
    row_P: Ints
    expert_P: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Returned:
    """An actor's answer: rows_PD in the order of the parcel's pairs."""

    actor: ActorId
    key: DispatchKey
    rows_PD: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """The actor will not answer this key (it does not hold an expert, or the rows were malformed)."""

    actor: ActorId
    key: DispatchKey
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """The actor is unreachable; nothing more will come from it in this view."""

    actor: ActorId
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Alive:
    """A sign of life of an actor that has no answer yet."""

    actor: ActorId


Event = Returned | Refused | Lost | Alive


class Transport(Protocol):
    """One way to reach the expert actors of a view."""

    def set_view(self, view: View) -> None:
        """Adopt a view: connect to its new actors, forget those that are gone. Failures come out of poll."""

    def post(self, actor: ActorId, parcel: Parcel) -> None:
        """Send without waiting; a failure comes out of poll as Lost."""

    def poll(self, timeout_s: float) -> list[Event]:
        """What has arrived; waits up to timeout_s for the first event."""

    def cancel(self, key: DispatchKey) -> None:
        """The answer to `key` is no longer wanted."""
