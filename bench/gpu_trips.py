"""One of the two processes of bench.gpu_dispatch: round trips, by every transport.

    python -m bench.gpu_trips PORT RANK ROWS,ROWS,...

Reports a line of JSON for each. Knows nothing of models.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore

from bench.gpu_echo import (
    PER_ROW,
    REPLAYS,
    TRIPS,
    WIDTH,
    all_to_all_trip,
    mailbox_trip,
    mailbox_wrong,
    pair_trip,
    repeated,
    rows_and_experts,
    served,
    stamped,
    timed,
)
from bench.gpu_link import Joined, Link, captured, join, report
from router.nccl import EXPERT, Pair
from router.shm import Geometry

FIRST_S = 20.0  # of a first trip: the other side may be compiling
LONG_S = 1.0
CHECKED_REPLAYS = 10
ABORT_AFTER_S = 0.3


def main() -> None:
    port, rank = int(sys.argv[1]), int(sys.argv[2])
    rows = [int(count) for count in sys.argv[3].split(",")]
    link = Link(port, rank)
    dist.init_process_group(
        "nccl", store=PrefixStore("world", link.store), rank=rank, world_size=2, device_id=link.device
    )
    pair = Pair(link.store, "pair", rank, link.device)
    for name, measure in (
        ("shm 1:1", lambda count: _mailboxes(link, count, PER_ROW, both=False)),
        ("shm 1:1, 4 rows back", lambda count: _mailboxes(link, count, PER_ROW // 2, both=False)),
        ("shm both ways, 4 back", lambda count: _mailboxes(link, count, PER_ROW // 2, both=True)),
        ("nccl 1:1", lambda count: _pairs(link, pair, count, PER_ROW, both=False)),
        ("nccl 1:1, 4 rows back", lambda count: _pairs(link, pair, count, PER_ROW // 2, both=False)),
        ("nccl both ways, 4 back", lambda count: _pairs(link, pair, count, PER_ROW // 2, both=True)),
        ("all_to_all, 4 back", lambda count: _all_to_all(link, count)),
    ):
        for count in rows:
            _try(link, name, count, measure)
    torch.cuda.synchronize()
    _death(link, pair)
    sys.stdout.flush()
    # Graphs that hold NCCL's kernels may hang its own end: this process has nothing left to lose.
    os._exit(0)


def _try(link: Link, name: str, rows: int, measure: Callable[[int], dict[str, float]]) -> None:
    try:
        fields = measure(rows)
    except Exception as error:  # noqa: BLE001 - one transport's failure must not hide the others' figures
        report("trip", name=name, rows=rows, rank=link.rank, error=repr(error)[:400])
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if fields:
        report("trip", name=name, rows=rows, rank=link.rank, **fields)


def _mailboxes(link: Link, rows: int, back: int, *, both: bool) -> dict[str, float]:
    """back: how many of a row's places the other side answers; the rest are nobody's."""
    asks, serves = both or link.rank == 0, both or link.rank == 1
    geometry = Geometry(slots=1, capacity=rows, width=WIDTH, per_row=PER_ROW, places=PER_ROW + 1)
    joined = join(link, geometry, (1, PER_ROW), asks=asks, serves=serves, own=False)
    serving = torch.cuda.Stream(link.device)
    turn = served(joined.expert) if joined.expert else None
    if joined.expert and turn:
        turn()  # whatever is compiled or loaded while a kernel waits would wait for it
        torch.cuda.synchronize()
        joined.expert.set_timing(FIRST_S, 0.0)
        torch.cuda.synchronize()

    def meet(graph: torch.cuda.CUDAGraph | None) -> None:
        link.meet()
        if graph is not None:
            with torch.cuda.stream(serving):
                graph.replay()

    if not joined.asker:
        assert turn is not None, "who does not ask serves"
        link.meet()
        turn()
        torch.cuda.synchronize()
        assert joined.expert is not None, "it has a turn"
        joined.expert.set_timing(LONG_S, 0.0)
        turns = captured(repeated(turn), serving)
        for _ in range(2 * REPLAYS + CHECKED_REPLAYS):
            meet(turns)
            torch.cuda.synchronize()
        return {}
    return _asked(link, joined, rows, back, turn, serving, meet)


def _asked(
    link: Link,
    joined: Joined,
    rows: int,
    back: int,
    turn: Callable[[], None] | None,
    serving: torch.cuda.Stream,
    meet: Callable[[torch.cuda.CUDAGraph | None], None],
) -> dict[str, float]:
    asker = joined.asker
    assert asker is not None, "called for askers"
    asker.patience.fill_(round(FIRST_S * 1e9))
    x, experts = rows_and_experts(rows, link.device)
    trip = mailbox_trip(asker, x, experts)
    times = torch.zeros(TRIPS, dtype=torch.int64, device=link.device)
    wrong = torch.zeros((), dtype=torch.int64, device=link.device)
    check = mailbox_wrong(asker, x, experts, back)
    check(wrong)  # nobody is asked yet, so this only compiles and loads
    stamped(lambda: None, times)()
    torch.cuda.synchronize()
    wrong.zero_()
    asker.set_owners({0: [joined.other] * PER_ROW})
    asker.owners[0, back:] = 0  # nobody's: these places stay empty
    torch.cuda.synchronize()
    link.meet()
    if turn:
        with torch.cuda.stream(serving):
            turn()
    trip()
    torch.cuda.synchronize()
    asker.patience.fill_(round(LONG_S * 1e9))
    if joined.expert:
        joined.expert.set_timing(LONG_S, 0.0)
    turns = captured(repeated(turn), serving) if turn else None
    plain = captured(repeated(trip))
    marked = captured(stamped(trip, times))
    checking = captured(repeated(lambda: check(wrong)))
    found = timed(plain, marked, times, lambda: meet(turns))
    for _ in range(CHECKED_REPLAYS):
        torch.cuda.synchronize()
        meet(turns)
        checking.replay()
    torch.cuda.synchronize()
    lost = int(asker.lost.sum())
    return {**found.fields(), "wrong": int(wrong), "checked": CHECKED_REPLAYS * TRIPS, "lost": lost}


def _pairs(link: Link, pair: Pair, rows: int, back: int, *, both: bool) -> dict[str, float]:
    return _nccl(link, pair_trip(pair, link.rank, rows, back, link.device, both=both))


def _all_to_all(link: Link, rows: int) -> dict[str, float]:
    return _nccl(link, all_to_all_trip(rows, PER_ROW // 2, link.device))


def _death(link: Link, pair: Pair) -> None:
    """The peer dies while a receive is posted: how long until an abort from another thread has ended it."""
    block = torch.zeros(1 << 20, device=link.device)
    link.meet()
    if link.rank == EXPERT:
        os.kill(os.getpid(), signal.SIGKILL)
    aborted_s: list[float] = []

    def abort() -> None:
        aborted_s.append(time.monotonic())
        pair.abort()
        aborted_s.append(time.monotonic())

    timer = threading.Timer(ABORT_AFTER_S, abort)
    timer.start()
    pair.receive(block)
    torch.cuda.synchronize()
    free_s = time.monotonic()
    timer.join()
    usable = bool(
        (torch.ones(64, 64, device=link.device) @ torch.ones(64, 64, device=link.device) == 64).all()
    )
    report(
        "nccl-death",
        abort_ms=round((aborted_s[1] - aborted_s[0]) * 1e3, 1),
        free_ms=round((free_s - aborted_s[0]) * 1e3, 1),
        usable=usable,
    )


def _nccl(link: Link, trip: Callable[[], None]) -> dict[str, float]:
    times = torch.zeros(TRIPS, dtype=torch.int64, device=link.device)
    link.meet()
    for _ in range(2):
        trip()
    stamped(lambda: None, times)()
    plain = captured(repeated(trip))
    marked = captured(stamped(trip, times))
    return timed(plain, marked, times, link.meet).fields()


if __name__ == "__main__":
    main()
