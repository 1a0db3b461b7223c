"""Who is at the other end: a mutual challenge by token.

Both ends of every socket of a cluster hold the same secret, the cluster token; it never travels. The server
sends a Challenge, the client answers with a Hello that proves the token, the server proves it in turn with a
Welcome. Knows nothing of sockets: `router/tcp.py` (threads) and `ingress/link.py` (asyncio) move the frames.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import ClassVar

from router.wire import WireError

PROTOCOL = 2
MAX_HANDSHAKE_BYTES = 4096  # a stranger may not make us read more than this
HANDSHAKE_TIMEOUT_S = 5.0


class AuthenticationError(WireError):
    """The peer does not hold this cluster's token, or speaks another protocol version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    KIND: ClassVar[str] = "challenge"
    protocol: int
    nonce: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """role: "attention", "expert", "ingress" or "controller"; incarnation: tells lives of one id apart."""

    KIND: ClassVar[str] = "hello"
    protocol: int
    role: str
    actor: str
    incarnation: int
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    KIND: ClassVar[str] = "welcome"
    actor: str
    incarnation: int
    proof: bytes


def challenge() -> Challenge:
    """The server's opening, with a fresh nonce."""
    return Challenge(protocol=PROTOCOL, nonce=secrets.token_bytes(32))


def answer(received: Challenge, *, token: bytes, role: str, actor: str, incarnation: int) -> Hello:
    """The client's answer; raises AuthenticationError if the server speaks another protocol."""
    if received.protocol != PROTOCOL:
        raise AuthenticationError(f"peer speaks protocol {received.protocol}, this build {PROTOCOL}")
    nonce = secrets.token_bytes(32)
    proof = _proof(token, b"client", received.nonce, nonce, _identity(role, actor, incarnation))
    return Hello(protocol=PROTOCOL, role=role, actor=actor, incarnation=incarnation, nonce=nonce, proof=proof)


def admit(sent: Challenge, received: Hello, *, token: bytes, actor: str, incarnation: int) -> Welcome:
    """The server's verdict on a Hello; raises AuthenticationError."""
    if received.protocol != PROTOCOL:
        raise AuthenticationError(f"peer speaks protocol {received.protocol}, this build {PROTOCOL}")
    identity = _identity(received.role, received.actor, received.incarnation)
    if not hmac.compare_digest(
        received.proof, _proof(token, b"client", sent.nonce, received.nonce, identity)
    ):
        raise AuthenticationError(f"{received.role[:40]!r} peer does not hold this cluster's token")
    proof = _proof(token, b"server", received.nonce, sent.nonce, _identity("server", actor, incarnation))
    return Welcome(actor=actor, incarnation=incarnation, proof=proof)


def confirm(sent: Hello, challenge_nonce: bytes, received: Welcome, *, token: bytes) -> None:
    """The client's check of the server; raises AuthenticationError."""
    identity = _identity("server", received.actor, received.incarnation)
    if not hmac.compare_digest(
        received.proof, _proof(token, b"server", sent.nonce, challenge_nonce, identity)
    ):
        raise AuthenticationError(f"{received.actor[:40]!r} does not hold this cluster's token")


def _identity(role: str, actor: str, incarnation: int) -> bytes:
    return f"{len(role)}:{role}{len(actor)}:{actor}{incarnation}".encode()


def _proof(token: bytes, side: bytes, first: bytes, second: bytes, identity: bytes) -> bytes:
    # Nonces are hashed to a fixed length so that no two field splits share a message.
    parts = (side, hashlib.sha256(first).digest(), hashlib.sha256(second).digest(), identity)
    return hmac.new(token, b"|".join(parts), hashlib.sha256).digest()
