"""One says something, the other answers: nothing that came is lost, nobody waits for ever."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from actors.expert_frames import ExpertPart, ExpertWanted
from router.connection import Connection
from router.dialogue import hear, say
from router.heartbeat import Beat
from router.transport import PeerLost
from router.wire import BadFrame, encode, kinds


@pytest.fixture(name="ends")
def _ends() -> Iterator[tuple[Connection, socket.socket]]:
    server = socket.create_server(("127.0.0.1", 0))
    mine = socket.create_connection(server.getsockname())
    theirs, _ = server.accept()
    connection = Connection(mine, kinds(ExpertPart, ExpertWanted, Beat))
    yield connection, theirs
    for one in (connection, theirs, server):
        one.close()


def part(start: int) -> ExpertPart:
    return ExpertPart(layer=1, expert=2, start=start)


def test_answers_that_come_together_are_heard_one_after_another(ends: tuple[Connection, socket.socket]):
    connection, theirs = ends
    theirs.sendall(encode(part(0), 1) + b"a" + encode(Beat()) + encode(part(1), 1) + b"b" + encode(Beat()))
    for start, payload in enumerate((b"a", b"b")):
        message, found = hear(connection, ExpertPart, patience_s=10.0)
        assert (message, bytes(found)) == (part(start), payload)


def test_another_message_than_was_awaited_is_refused(ends: tuple[Connection, socket.socket]):
    connection, theirs = ends
    theirs.sendall(encode(ExpertWanted(layer=1, expert=2, start=0)))
    with pytest.raises(BadFrame, match="expert_wanted came for expert_part"):
        hear(connection, ExpertPart, patience_s=10.0)


def test_who_says_nothing_or_only_beats_or_hears_nothing_is_not_waited_for(
    ends: tuple[Connection, socket.socket],
):
    connection, theirs = ends
    theirs.sendall(encode(Beat()))
    with pytest.raises(TimeoutError, match=r"not within 0\.05 s"):
        hear(connection, ExpertPart, patience_s=0.05)
    with pytest.raises(TimeoutError, match=r"not within 0\.05 s"):
        say(connection, part(0), bytes(32 << 20), patience_s=0.05)
    theirs.close()
    with pytest.raises(PeerLost):
        hear(connection, ExpertPart, patience_s=10.0)
