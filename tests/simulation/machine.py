"""What a controller asks, answered on a fake clock.

The worker is the real one with its loads taken out. Anything may die, hang or fail to load at any moment, and
the controller in the middle of any call. Watches what may never happen. Knows nothing of why it is asked.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from actors.options import ActorOptions, ExpertOrder, Loaded, Taken
from cluster.processes import Answer, ProcessDied, WorkFailed
from cluster.workers import Worker
from router.view import Pair, View

CALL_S = {"pulse": 0.5, "warm": 1.0, "load_expert": 0.4, "load_attention": 0.6, "take": 0.3}
PROMPT_S = 0.002
CHECKSUM = "of what attention actors read"
SEAT_S = 0.1  # between two looks for a seat
ADOPT_S = 0.2  # until an attention actor's next step


Digests = Mapping[Pair, int]


class Crash(BaseException):
    """The controller's process ends here."""


class FakeAnswer:
    """Nobody waits for one that is not there."""

    def __init__(self) -> None:
        self._value: Any = None
        self._is_done = False

    @property
    def reference(self) -> FakeAnswer:
        return self

    def settle(self, value: object) -> None:
        if not self._is_done:
            self._value, self._is_done = value, True

    def is_done(self) -> bool:
        return self._is_done

    def get(self) -> Any:
        assert self._is_done, "would wait"
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class FakeServer:
    """Of either kind. epoch: of the newest view that has come; in_use: of that which it computes with."""

    convicted = ()
    is_handing_over = False
    fatal_seed: int | None = None

    def __init__(self, machine: Machine, number: int, digests: Digests, view: View | None) -> None:
        self._machine, self._number = machine, number
        self.pairs, self.view, self.in_use = frozenset(digests), view, view
        self.digests = dict(digests)  # as they were when it took them

    def stats(self) -> dict[str, float]:
        machine = self._machine
        return {
            "busy_s": machine.busy_share * machine.now_s,
            "running": machine.running,
            "wait_s": 0.0,
            "free_pages": 8,
            "pages": 8,
        }

    def expert_pairs(self) -> Any:
        """As many since birth as its time and the load say."""
        return self._machine.load_LE * self._machine.now_s

    @property
    def num_sequences(self) -> int:
        return self._machine.running

    @property
    def epoch(self) -> int:
        return self.view.epoch if self.view else 0

    @property
    def epoch_in_use(self) -> int:
        return self.in_use.epoch if self.in_use else 0

    def poison(self, seed: int) -> None:
        self.fatal_seed = seed

    def set_view(self, view: View) -> None:
        assert self.view is not None, "an expert actor is told a view"
        if view.epoch > self.view.epoch:
            self.view = view
            self._machine.at(ADOPT_S, self._adopt)

    def _adopt(self) -> None:
        self.in_use = self.view

    def drop(self, pairs: frozenset[Pair]) -> None:
        self._machine.check_drop(self._number, pairs)
        self.pairs -= pairs


class FakeWorker(Worker):
    """The real one but for loads, and without threads."""

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__(lambda: "127.0.0.1")
        self._machine, self._number = machine, number
        self.server: FakeServer | None = None

    def warm(self) -> None:
        self._is_standby = True

    def load_expert(self, options: ActorOptions, config: Any, order: ExpertOrder) -> Loaded:
        digests = self._machine.take(order, self._number)
        return self._load(options, FakeServer(self._machine, self._number, digests, None))

    def load_attention(self, options: ActorOptions, _: Any, view: bytes | None, checksum: str) -> Loaded:
        assert view is not None
        assert checksum in ("", CHECKSUM)
        known = self._machine.check_view(view)
        return self._load(options, FakeServer(self._machine, self._number, {}, known))

    def _load(self, options: ActorOptions, server: FakeServer) -> Loaded:
        assert options.incarnation == self._number
        self._machine.fail_if_due()
        self._is_standby = False
        self.server = self._server = server
        self._options = options
        self._loaded = Loaded(
            host="127.0.0.1",
            port=self._number,
            metrics_port=1,
            pid=self._number,
            bytes_read=0,
            checksum=CHECKSUM,
            digests=server.digests,
        )
        return self._loaded

    def take(self, order: ExpertOrder) -> Taken:
        self._machine.fail_if_due()
        digests = self._machine.take(order, self._number)
        assert self.server is not None
        self.server.pairs |= order.pairs
        self.server.digests |= digests
        return Taken(digests=digests, origins="")

    def run(self) -> None:
        self._is_running = True

    def set_view(self, view: bytes) -> None:
        self._machine.check_view(view)
        super().set_view(view)

    @property
    def serves(self) -> bool:
        return self._is_running


class FakeProcess:
    """One process; what it is asked it does in order."""

    def __init__(self, machine: Machine, number: int, seat: str | None) -> None:
        self.number, self.worker = number, FakeWorker(machine, number)
        self.seat, self.is_seated = seat, seat is None
        self.is_alive, self.is_hung = True, False
        self._machine = machine
        self._owed: list[tuple[FakeAnswer, Callable[[], object]]] = []
        self._free_s: dict[str, float] = {}

    def ask(self, question: str, *arguments: object) -> Answer:
        self._machine.seam()
        answer = FakeAnswer()
        if not self.is_alive:
            answer.settle(ProcessDied("gone"))
            return answer
        lane = "main" if question in ("warm", "run") or question.startswith("load") else question
        start_s = max(self._machine.now_s, self._free_s.get(lane, 0.0))
        self._free_s[lane] = done_s = start_s + CALL_S.get(question, PROMPT_S)
        owed = (answer, lambda: getattr(self.worker, question)(*arguments))
        self._owed.append(owed)
        self._machine.at(done_s - self._machine.now_s, lambda: self._answer(owed))
        return answer

    def _answer(self, owed: tuple[FakeAnswer, Callable[[], object]]) -> None:
        if not self.is_alive or self.is_hung:
            return
        if not self._sits():
            self._machine.at(SEAT_S, lambda: self._answer(owed))
            return
        answer, work = owed
        self._owed.remove(owed)
        try:
            answer.settle(work())
        except WorkFailed as error:
            answer.settle(error)

    def _sits(self) -> bool:
        """Once it has a seat, to its end."""
        taken = [other for other in self._machine.alive if other.seat == self.seat and other.is_seated]
        self.is_seated = self.is_seated or len(taken) < self._machine.seats[self.seat]
        return self.is_seated

    def end(self, pid: int | None) -> None:
        self._machine.seam()
        assert pid in (None, self.number)
        self.die()

    def die(self) -> None:
        self.is_alive = False
        for answer, _ in self._owed:
            answer.settle(ProcessDied("died"))
        self._owed.clear()


class Machine:
    """Processes, memory and clock. crash_in: seam calls until the controller ends; None: it does not.

    seats: how many processes may be in one of that name; the others do not begin.
    """

    def __init__(self) -> None:
        self.seats: Counter[str | None] = Counter()
        self.now_s = 0.0
        self.crash_in: int | None = None
        self.failing_loads = 0
        self.damaged: frozenset[Pair] = frozenset()  # of the checkpoint
        self.busy_share = 0.0  # of its time, in which an expert actor computes
        self.running = 0  # sequences of an attention actor
        self.load_LE = np.zeros((2, 6))  # pairs a second
        self.processes: dict[int, FakeProcess] = {}
        self._memory: bytes | None = None
        self._views: dict[int, bytes] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    # What the controller may ask

    def spawn(self, number: int, seat: str | None = None) -> FakeProcess:
        self.seam()
        assert number not in self.processes, f"life {number} was there before"
        self.processes[number] = FakeProcess(self, number, seat)
        return self.processes[number]

    def living(self) -> list[tuple[int, FakeProcess]]:
        self.seam()
        return [(process.number, process) for process in self.alive]

    def wait(self, answers: Sequence[Answer], timeout_s: float, *, for_all: bool = False) -> None:
        self.seam()
        enough = all if for_all else any
        end_s = self.now_s + timeout_s
        while not enough(answer.is_done() for answer in answers):
            if not self._agenda or self._agenda[0][0] > end_s:
                self.now_s = end_s
                return
            self._step()

    def recall(self) -> bytes | None:
        self.seam()
        return self._memory

    def remember(self, value: bytes) -> None:
        self.seam()
        self._memory = value
        self.seam()

    def seam(self) -> None:
        """Here the controller may end."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise Crash

    # What happens

    @property
    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes.values() if process.is_alive]

    @property
    def attention(self) -> list[FakeServer]:
        servers = [p.worker.server for p in self.alive if p.worker.serves and not p.is_hung]
        return [server for server in servers if server is not None and server.view is not None]

    def at(self, delay_s: float, deed: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now_s + delay_s, next(self._numbers), deed))

    def let_pass(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while self._agenda and self._agenda[0][0] <= end_s:
            self._step()
        self.now_s = end_s

    def _step(self) -> None:
        time_s, _, deed = heapq.heappop(self._agenda)
        self.now_s = max(self.now_s, time_s)
        deed()

    def fail_if_due(self) -> None:
        if self.failing_loads:
            self.failing_loads -= 1
            raise WorkFailed("a shard is damaged")

    # What may never happen

    def check_view(self, packed: bytes) -> View:
        """One epoch, one view."""
        view = View.from_bytes(packed)
        assert self._views.setdefault(view.epoch, packed) == packed, f"two views of epoch {view.epoch}"
        return view

    def digests_of(self, pairs: Iterable[Pair]) -> Digests:
        return {pair: hash((pair, pair in self.damaged)) for pair in pairs}

    def take(self, order: ExpertOrder, number: int) -> Digests:
        """As the worker does: what is taken must be what was read before, out of files or from a peer."""
        view = View.from_bytes(order.view) if order.view else None
        found = dict(self.digests_of(order.pairs))
        for pair in found:
            if order.known.get(pair, found[pair]) == found[pair]:
                continue
            if not any(self._peer_has(life, pair, order) for life in holders(view, pair) if life != number):
                raise WorkFailed("is not what was read of it before")
            found[pair] = order.known[pair]
        return found

    def _peer_has(self, life: int, pair: Pair, order: ExpertOrder) -> bool:
        """Whether it lives; if it does, it must serve what the newest view said that it holds."""
        peer = self.processes[life]
        if not peer.is_alive or peer.is_hung:
            return False
        server = peer.worker.server
        assert server is not None and peer.worker.serves, f"life {life} is asked before it serves"
        return pair in server.pairs and server.digests[pair] == order.known[pair]

    def check_drop(self, number: int, pairs: frozenset[Pair]) -> None:
        """Nobody may compute by a view that shows what is dropped."""
        for server in self.attention:
            for view in (server.in_use, server.view):
                assert view is not None
                shown = shown_by(view).get(number, frozenset())
                assert not shown & pairs, f"life {number} drops what epoch {view.epoch} shows"


def holders(view: View | None, pair: Pair) -> list[int]:
    """Lives that the view says hold it."""
    return [life for life, pairs in shown_by(view).items() if pair in pairs] if view else []


def shown_by(view: View) -> dict[int, frozenset[Pair]]:
    """By life, what the view says that it holds."""
    return {actor.incarnation: view.pairs_of(place) for place, actor in enumerate(view.actors)}
