"""What ingress and attention actors say to each other.

One TCP connection per pair (router/wire.py frames). The ingress sends Submit and Cancel; the attention
actor answers with one Events frame per step that holds every token of that step for this ingress. Knows
nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from typing import ClassVar

import msgpack

from model.sampling import Sampling as Sampling
from router.wire import BadFrame, Bytes, from_fields

PROOF_TOKENS = 2  # after which a suspect is one no more: one may have been made before, and lost

FINISH_STOP = "stop"  # an end-of-text or stop token was sampled
FINISH_LENGTH = "length"  # max_tokens or the context is used up
FINISH_CANCELLED = "cancelled"  # the ingress asked for it
FINISH_ERROR = "error"  # `error` says why
FINISH_GRAMMAR = "grammar"  # its grammar costs too much here; `error` says why
FINISH_DEADLINE = "deadline"  # its time was up; said by the ingress, which keeps the time
FINISH_OVERLOADED = "overloaded"  # not taken: too much waits; `error` says why, `retry_after_s` until when
FINISH_OVER_SHARE = "over share"  # the same, but this tenant's own sequences are what waits


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """On what terms a sequence is served.

    tenant: an opaque mark; each has the same share of its class. is_batch: in the class that gets what the
    interactive one leaves, and a tenth at least. max_wait_s: refuse it rather than let it begin later.
    is_promised: the client counts on it, so it is never refused. num_together: it and those promised that
    come with it if it is let in. cache_salt: sequences of different tenants or salts share no pages of
    the cache. is_suspect: the actor that computed it before has died of it or of a neighbour; it is told that
    it is let in only when it is computed (actors/suspects.py).
    """

    KIND: ClassVar[str] = "terms"
    tenant: str = ""
    is_batch: bool = False
    max_wait_s: float | None = None
    is_promised: bool = False
    num_together: int = 1
    cache_salt: str = ""
    is_suspect: bool = False

    @property
    def page_salt(self) -> str:
        """What the keys of its pages begin with."""
        return f"{self.tenant}\n{self.cache_salt}"


ANY_TERMS = Terms()


@dataclass(frozen=True, kw_only=True, slots=True)
class Submit:
    """Start (or resume) a sequence. Payload: num_prompt + num_emitted int32 little-endian token ids.

    `num_emitted` tokens were already sent to the client by an earlier attention actor: they count towards
    max_tokens, min_tokens and penalties and are never sent again.
    """

    KIND: ClassVar[str] = "submit"
    request_id: str
    num_prompt: int
    num_emitted: int
    sampling: dict[str, str | int | float | bool | tuple[int, ...] | tuple[tuple[int, float], ...] | None]
    terms: dict[str, str | bool | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancel:
    """Forget a sequence; answered by a terminal event unless it had already ended."""

    KIND: ClassVar[str] = "cancel"
    request_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HandOver:
    """The actor is to leave: what this ingress has there may go on at any of these.

    heirs: (actor id, incarnation, host, port) of attention actors, the least busy first. A sequence whose
    pages are at one of them ends here with an event that says so.
    """

    KIND: ClassVar[str] = "hand_over"
    heirs: tuple[tuple[str, int, str, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEvent:
    """New tokens of one sequence.

    first: index of token_ids[0] among all emitted tokens (gap and duplicate check).
    logprobs: one per token id, when asked for. top: per token, (token id, logprob) pairs, likeliest first.
    num_cached: with the first token, how many tokens of the prompt were not computed for it; if it has begun,
    also with moved_to. moved_to: the sequence goes on at that actor, which has its pages; no more from here.
    prompt_logprobs, prompt_top: the same of the prompt's tokens but its first, where the sampling wants them:
    with the first token.
    finish: None while the sequence lives, else one of FINISH_*; exactly one event of a sequence carries it.
    work: with the last token, what this actor did for it (actors/sequence.py).
    The first event of a sequence that is let in says only that it is: it has neither tokens nor a finish.
    """

    KIND: ClassVar[str] = "token"
    request_id: str
    first: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    num_cached: int | None = None
    prompt_logprobs: tuple[float, ...] = ()
    prompt_top: tuple[tuple[tuple[int, float], ...], ...] = ()
    finish: str | None = None
    error: str | None = None
    retry_after_s: float | None = None
    work: dict[str, int | float] | None = None
    moved_to: str | None = None


def taken_event(request_id: str, first: int) -> TokenEvent:
    """The sequence is let in; `first`: how many tokens were emitted before."""
    return TokenEvent(request_id=request_id, first=first, token_ids=())


def end_event(
    request_id: str, first: int, finish: str, error: str | None = None, retry_after_s: float | None = None
) -> TokenEvent:
    """The end of a sequence without a new token; `first`: how many were emitted."""
    return TokenEvent(
        request_id=request_id,
        first=first,
        token_ids=(),
        finish=finish,
        error=error,
        retry_after_s=retry_after_s,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Events:
    """Every event of one step for one ingress. Payload: what pack_events makes of them.

    wait_s: until all that waits has begun, estimated.
    """

    KIND: ClassVar[str] = "events"
    num_events: int
    num_waiting: int
    num_running: int
    free_pages: int
    wait_s: float = 0.0


def pack_events(events: Iterable[TokenEvent]) -> bytes:
    """The payload of an Events frame; fields that hold their default are left out."""
    return bytes(msgpack.packb([_set_fields(event) for event in events], use_bin_type=True))


def unpack_events(payload: Bytes) -> list[TokenEvent]:
    """The events of an Events frame; raises BadFrame for anything else than what pack_events makes."""
    try:
        packed = msgpack.unpackb(payload, raw=False, strict_map_key=True, use_list=False)
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise BadFrame(f"events are not msgpack: {type(error).__name__}") from None
    if not isinstance(packed, tuple) or not all(isinstance(event, dict) for event in packed):
        raise BadFrame("events are not a list of field maps")
    return [from_fields(TokenEvent, event) for event in packed]


def _set_fields(event: TokenEvent) -> dict[str, object]:
    values = {field.name: (getattr(event, field.name), field.default) for field in fields(event)}
    return {
        name: value for name, (value, default) in values.items() if default is MISSING or value != default
    }
