"""What is done to the processes of a live cluster.

Real signals to real processes, found among those that this process has started. Says who was hit, so that
others can tell when it is replaced. Knows nothing of load or of what clients see.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.controller import CONTROLLER
from cluster.history import SERVED
from cluster.small_disk import filled
from cluster.snapshot import Unavailable
from cluster.streams import FIRST_BYTE_ID, LAST_BYTE_ID, Question, ask

if TYPE_CHECKING:
    from cluster.running import Cluster

INGRESS = "ingress"
INGRESS_TITLE = "ray::ServeReplica:shoal:ingress"
PROXY, PROXY_TITLE = "proxy", "ProxyActor"
SERVE, SERVE_TITLE = "serve", "ServeController"
HICCUP_S = 3.0
SLOW_S, MOMENT_S = 5.0, 0.1
LONG_PROMPTS, LONG_TOKENS = 6, 700
ORDER_S, POLL_S = 60.0, 0.1
DISK = "ray"  # beside the copy of the checkpoint
FULL_S = 6.0
POISON_SEED = 13_013
MAX_ASIDE = 8  # tokens of a question beside the load
CRASHED = "engine_crashed"
MOVING_S = 1.0  # after an order, experts are on their way

Victims = dict[str, int]  # by name, the process id that was hit
Inject = Callable[["Cluster", Victims, random.Random], Victims]  # who lives -> who was hit
Order = tuple[str, Mapping[str, object]]


class BrokenPromise(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """What came of a fault is not what should; the text says what did."""


def living(cluster: Cluster) -> Victims:
    """By name, the process id of everyone who may be hit."""
    status = cluster.status()
    members = {m["actor_id"]: int(m["pid"]) for m in status["members"] if m["active"]}
    ingresses = {f"{INGRESS}-{i}": pid for i, pid in enumerate(sorted(_titled(INGRESS_TITLE)))}
    of_serve = {PROXY: _titled(PROXY_TITLE), SERVE: _titled(SERVE_TITLE)}
    return {
        **members,
        CONTROLLER: int(status["pid"]),
        **ingresses,
        **{name: pids[0] for name, pids in of_serve.items() if pids},
    }


def are_replaced(cluster: Cluster, before: Victims, victims: Victims) -> bool:
    """Whether nobody who was hit is left, and as many as before serve again."""
    after = living(cluster)
    return after.keys() == before.keys() and not set(victims.values()) & set(after.values())


def processes() -> Counter[str]:
    """How many processes of each kind this process has started, those that merely wait for work left out."""
    titles = Counter(_title(process) for process in psutil.Process().children(recursive=True))
    return Counter({title: count for title, count in titles.items() if title and "IDLE" not in title})


def descriptors() -> Counter[str]:
    """How many files and sockets our processes of each kind have open; not those of Ray itself."""
    total: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            total[_title(process)] += process.num_fds()
        except psutil.Error:
            continue
    ours = {
        title: count for title, count in total.items() if title.startswith("ray::") and "IDLE" not in title
    }
    return Counter(ours)


def send(number: signal.Signals, *names: str) -> Inject:
    """A signal to processes by name."""

    def inject(_: Cluster, alive: Victims, __: random.Random) -> Victims:
        victims = {name: alive[name] for name in names}
        for pid in victims.values():
            _signal(pid, number)
        return victims

    return inject


def hiccup(name: str) -> Inject:
    """Suspended for HICCUP_S, then let go on, if there still is anything to go on."""

    def inject(cluster: Cluster, alive: Victims, generator: random.Random) -> Victims:
        victims = send(signal.SIGSTOP, name)(cluster, alive, generator)
        threading.Timer(HICCUP_S, _signal, (victims[name], signal.SIGCONT)).start()
        return victims

    return inject


def slow(name: str) -> Inject:
    """A tenth of its speed, for SLOW_S: suspended for most of every moment. Nobody need be replaced."""

    def inject(_: Cluster, alive: Victims, __: random.Random) -> Victims:
        end_s = time.monotonic() + SLOW_S
        while time.monotonic() < end_s:
            for number, part in ((signal.SIGSTOP, 0.9), (signal.SIGCONT, 0.1)):
                _signal(alive[name], number)
                time.sleep(part * MOMENT_S)
        return {}

    return inject


def starve(name: str) -> Inject:
    """It gets no more memory while prompts come that want some. It may live through that."""

    def inject(cluster: Cluster, alive: Victims, generator: random.Random) -> Victims:
        process = psutil.Process(alive[name])
        before = process.rlimit(psutil.RLIMIT_AS)
        process.rlimit(psutil.RLIMIT_AS, (process.memory_info().rss, before[1]))
        for number in range(LONG_PROMPTS):
            prompt = tuple(generator.choices(range(FIRST_BYTE_ID, LAST_BYTE_ID), k=LONG_TOKENS))
            question = Question(
                name=f"long{number}", prompt=prompt, temperature=0.0, seed=0, max_tokens=MAX_ASIDE
            )
            end = list(ask(cluster.url, cluster.model_name, question, question.name))[-1]
            if end.finish not in SERVED:
                raise BrokenPromise(f"a long prompt beside {name} without memory ended with {end.finish}")
        if not _lives(process.pid):
            return {name: alive[name]}
        process.rlimit(psutil.RLIMIT_AS, before)
        return {}

    return inject


def nothing(_: Cluster, __: Victims, ___: random.Random) -> Victims:
    """The fault that none is."""
    return {}


def spoil(name: str) -> Inject:
    """An expert actor whose weights are not numbers any more."""

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        cluster.spoil(name)
        return {name: alive[name]}

    return inject


def reach(name: str, point: str, passes: int = 1) -> Inject:
    """It ends at a point of its work (actors/fault_points.py)."""

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        cluster.arm(name, point, passes)
        _see_end(name, alive[name], point)
        return {name: alive[name]}

    return inject


def reach_while_telling(point: str, victim: str) -> Inject:
    """SIGKILL, and the controller ends while it deals with that."""

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        cluster.arm(CONTROLLER, point, 1)
        _signal(alive[victim], signal.SIGKILL)
        _see_end(CONTROLLER, alive[CONTROLLER], point)
        return {name: alive[name] for name in (CONTROLLER, victim)}

    return inject


def poison(cluster: Cluster, alive: Victims, __: random.Random) -> Victims:
    """A request that ends whoever computes it: after two of them it must be refused."""
    cluster.poison(POISON_SEED)
    question = Question(
        name="poison", prompt=(20, 30, 40), temperature=0.8, seed=POISON_SEED, max_tokens=MAX_ASIDE
    )
    end = list(ask(cluster.url, cluster.model_name, question, question.name))[-1]
    if CRASHED not in str(end.finish):
        raise BrokenPromise(f"a request that ends whoever computes it ended with {end.finish}")
    return {name: pid for name, pid in alive.items() if name.startswith("attention")}


def damage(name: str, awaited: str) -> Inject:
    """SIGKILL of an expert while every shard is damaged, until an event says that it `awaited`."""

    def inject(cluster: Cluster, alive: Victims, generator: random.Random) -> Victims:
        at_s = time.monotonic()
        with damaged(Path(str(cluster.spec.model))):
            victims = send(signal.SIGKILL, name)(cluster, alive, generator)
            while not any(text.startswith(f"{name} {awaited}") for _, text in cluster.events_after(at_s)):
                if time.monotonic() > at_s + ORDER_S:
                    raise BrokenPromise(
                        f"every shard is damaged, and it was never said that {name} {awaited}"
                    )
                time.sleep(POLL_S)
        return victims

    return inject


def fill_disk(name: str) -> Inject:
    """SIGKILL while Ray can write nothing any more, no log of a new process either, for FULL_S."""

    def inject(cluster: Cluster, alive: Victims, generator: random.Random) -> Victims:
        with filled(Path(str(cluster.spec.model)).parent / DISK):
            victims = send(signal.SIGKILL, name)(cluster, alive, generator)
            time.sleep(FULL_S)
        return victims

    return inject


@contextmanager
def damaged(directory: Path) -> Iterator[None]:
    """While the block runs, a bit of every kilobyte of weights is another one."""
    whole = {file: file.read_bytes() for file in directory.glob("*.safetensors")}
    try:
        for file, data in whole.items():
            spoilt = bytearray(data)
            for place in range(8 + int.from_bytes(data[:8], "little"), len(data), 1024):
                spoilt[place] ^= 1
            _replace(file, spoilt)
        yield
    finally:
        for file, data in whole.items():
            _replace(file, data)


def obey(*orders: Order, killing: str | None = None, reaching: tuple[str, str] | None = None) -> Inject:
    """Orders, each when the one before is carried out.

    killing: who dies while the first is. reaching: who ends, and at which point, of the last.
    """

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        for number, (order, arguments) in enumerate(orders, 1):
            deadline_s = time.monotonic() + ORDER_S
            while number > 1 and not is_settled(cluster) and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
            if reaching is not None and number == len(orders):
                cluster.arm(*reaching, 1)
            cluster.order(order, arguments)
            if killing is not None and number == 1:
                time.sleep(MOVING_S)
                _signal(alive[killing], signal.SIGKILL)
        if reaching is not None:
            _see_end(reaching[0], alive[reaching[0]], reaching[1])
        return {order: 0 for order, _ in orders}

    return inject


def is_settled(cluster: Cluster, *_: Victims) -> bool:
    """Whether everything that was ordered is so."""
    try:
        return bool(cluster.snapshot()["settled"])
    except Unavailable:
        return False  # the controller is in between two lives


def are_all_renewed(cluster: Cluster, before: Victims, _: Victims) -> bool:
    """Whether all is settled and nobody of before is left, those of Ray Serve itself apart."""
    old = {pid for name, pid in before.items() if name not in (PROXY, SERVE)}
    return is_settled(cluster) and not old & set(living(cluster).values())


def kill_any(_: Cluster, alive: Victims, generator: random.Random) -> Victims:
    """SIGKILL to one of all but those with whom their clients' connections would end."""
    kept = (INGRESS, PROXY, SERVE)
    name = generator.choice(sorted(name for name in alive if not name.startswith(kept)))
    _signal(alive[name], signal.SIGKILL)
    return {name: alive[name]}


def _see_end(name: str, pid: int, point: str) -> None:
    """Wait for it; raises BrokenPromise if it lives on."""
    deadline_s = time.monotonic() + ORDER_S
    while _lives(pid):
        if time.monotonic() > deadline_s:
            raise BrokenPromise(f"{name} did not come to its end at {point} within {ORDER_S:g} s")
        time.sleep(MOMENT_S / 10)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _replace(file: Path, data: bytes | bytearray) -> None:
    """Whoever has it open reads on in the old one."""
    beside = file.with_suffix(".new")
    beside.write_bytes(data)
    beside.replace(file)


def _signal(pid: int, number: signal.Signals) -> None:
    """To an actor of our cluster, if it still lives."""
    try:
        process = psutil.Process(pid)
        if _title(process).startswith("ray::"):
            process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _titled(title: str) -> list[int]:
    return [p.pid for p in psutil.Process().children(recursive=True) if title in _title(p)]


def _title(process: psutil.Process) -> str:
    """What Ray calls it, without the method that it is in; empty if it is gone."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return process.cmdline()[0].split("/")[-1].partition(".")[0].strip()
    except (psutil.Error, IndexError):
        return ""
