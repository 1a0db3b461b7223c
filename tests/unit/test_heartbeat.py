"""Signs of life: they flow while work is done, and silence is told from having been away."""

from __future__ import annotations

import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from router.connection import connect
from router.heartbeat import BEAT_S, LONGEST_STEP_S, Beat, Silence, beating
from router.listener import Listener
from router.view import ActorId, ExpertActor
from router.wire import kinds
from tests.shoals import TOKEN

LIMIT_S = 10.0


@given(st.lists(st.floats(0.0, 1e4), max_size=20))
def test_a_single_step_however_long_counts_as_a_short_one(steps_s: list[float]):
    """Who was suspended for an hour has not listened for an hour."""
    silence = Silence()
    for step_s in steps_s:
        before_s = silence.quiet_s
        silence.listened(step_s)
        assert before_s <= silence.quiet_s <= before_s + min(step_s, LONGEST_STEP_S) + 1e-9
    silence.heard()
    assert silence.quiet_s == 0.0


def test_beats_come_from_another_thread_until_the_block_ends():
    threads, came = set[int](), threading.Event()

    def beat() -> None:
        threads.add(threading.get_ident())
        came.set()

    with beating(beat):
        assert came.wait(LIMIT_S)
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_peer_hears_beats_while_the_loop_works_and_none_while_it_waits():
    listener = Listener("127.0.0.1", 0, token=TOKEN, actor="expert-0", incarnation=1, accepted=kinds(Beat))
    place = ExpertActor(actor_id=ActorId("expert-0"), incarnation=1, host=listener.host, port=listener.port)
    serving = threading.Event()

    def serve() -> None:
        while not serving.is_set():
            listener.poll(LIMIT_S)

    thread = threading.Thread(target=serve)
    thread.start()
    peer = connect(place, token=TOKEN, actor="attention-0", incarnation=1, accepted=kinds(Beat))
    time.sleep(1.1 * BEAT_S)
    listener.beat()  # it waits
    assert list(peer.receive()) == []
    serving.set()
    listener.wake()
    thread.join(LIMIT_S)
    listener.beat()  # it works, and the peer has heard nothing for longer than a beat
    listener.beat()  # but now it has
    frames = []
    deadline_s = time.monotonic() + LIMIT_S
    while not frames and time.monotonic() < deadline_s:
        frames += peer.receive()
    assert [type(frame.message) for frame in frames] == [Beat]
    peer.close()
    listener.beat()
    listener.close()
