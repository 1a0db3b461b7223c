"""What one attention actor says to another when it hands pages over.

Offer, Wanted, Pages in as many frames as it takes, Taken; on a connection of its own for each sequence. What
a page holds travels as raw bytes with a checksum. Knows nothing of who leaves, or where pages are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from router.wire import BadFrame, Bytes

DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """The pages of a sequence, by their keys (actors/prefix.py), from its first token on.

    maker: what made them: the same weights and arithmetic make the same pages, others do not.
    """

    KIND: ClassVar[str] = "offer"
    maker: str
    keys: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The answer: the first num_fit of them have room or are there; of these, `places` are not there yet."""

    KIND: ClassVar[str] = "wanted"
    num_fit: int
    places: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """Some of what was wanted, by place. Payload: what they hold, one after another; digest: of that."""

    KIND: ClassVar[str] = "pages"
    places: tuple[int, ...]
    digest: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """All that was wanted is there, or `problem` says why it is not."""

    KIND: ClassVar[str] = "taken"
    problem: str | None = None


def pages_frame(places: Sequence[int], payload: Bytes) -> Pages:
    return Pages(places=tuple(places), digest=_digest(payload))


def check_pages(pages: Pages, payload: Bytes, page_bytes: int) -> None:
    """Raises BadFrame unless the payload is what was sent, of so many pages."""
    if len(set(pages.places)) < max(1, len(pages.places)):
        raise BadFrame("a frame of no pages, or of one twice")
    if len(payload) != len(pages.places) * page_bytes:
        raise BadFrame(
            f"{len(pages.places)} pages of {page_bytes} bytes announced, {len(payload)} bytes came"
        )
    if _digest(payload) != pages.digest:
        raise BadFrame(f"the checksum of {len(pages.places)} pages is wrong")


def _digest(payload: Bytes) -> bytes:
    return blake2b(payload, digest_size=DIGEST_BYTES).digest()
