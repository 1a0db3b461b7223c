"""Faults by name, done to the processes of a live cluster.

Real signals to real processes, found among those that this process has started. Says who was hit, so that
others can tell when it is replaced. Knows nothing of load or of what clients see.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from cluster.snapshot import Unavailable
from cluster.streams import Question, ask

if TYPE_CHECKING:
    from cluster.launch import Cluster

CONTROLLER = "controller"
INGRESS = "ingress"
INGRESS_TITLE = "ray::ServeReplica:shoal:ingress"
HICCUP_S = 3.0
SLOW_S, MOMENT_S = 5.0, 0.1
ORDER_S, POLL_S = 60.0, 0.1
POISON_SEED, MAX_POISONED = 13_013, 8
TO_COMPARE = 16  # requests, of whose times the later ones are compared with the p99
CRASHED = "engine_crashed"
MOVING_S = 1.0  # after an order, experts are on their way

Victims = dict[str, int]  # by name, the process id that was hit
Inject = Callable[["Cluster", Victims, random.Random], Victims]  # who lives -> who was hit
Order = tuple[str, Mapping[str, object]]
IsOver = Callable[["Cluster", Victims, Victims], bool]  # who lived before, who was hit


class BrokenPromise(Exception):  # noqa: N818 - named for what happened, as the rest of the tree
    """What came of a fault is not what should; the text says what did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What is done, and where.

    is_replicated: in a cluster of two attention actors, two ingress replicas and two copies of each expert.
    may_cut: connections of clients may end with the process that was hit. is_over: all is well again; none:
    when everyone who was hit is replaced. requests_before: so many must have ended before it comes.
    spoils_files: of the checkpoint, so it is done to a copy only.
    """

    name: str
    about: str
    is_replicated: bool
    inject: Inject
    may_cut: bool = False
    is_over: IsOver | None = None
    requests_before: int = 0
    spoils_files: bool = False


def living(cluster: Cluster) -> Victims:
    """By name, the process id of everyone who may be hit."""
    status = cluster.status()
    members = {m["actor_id"]: int(m["pid"]) for m in status["members"] if m["active"]}
    ingresses = {f"{INGRESS}-{i}": pid for i, pid in enumerate(sorted(_titled(INGRESS_TITLE)))}
    return {**members, CONTROLLER: int(status["pid"]), **ingresses}


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


def spoil(name: str) -> Inject:
    """An expert actor whose weights are not numbers any more."""

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        cluster.spoil(name)
        return {name: alive[name]}

    return inject


def poison(cluster: Cluster, alive: Victims, __: random.Random) -> Victims:
    """A request that ends whoever computes it: after two of them it must be refused."""
    cluster.poison(POISON_SEED)
    question = Question(
        name="poison", prompt=(20, 30, 40), temperature=0.8, seed=POISON_SEED, max_tokens=MAX_POISONED
    )
    end = list(ask(cluster.url, cluster.model_name, question, question.name))[-1]
    if CRASHED not in str(end.finish):
        raise BrokenPromise(f"a request that ends whoever computes it ended with {end.finish}")
    return {name: pid for name, pid in alive.items() if name.startswith("attention")}


def damage(name: str) -> Inject:
    """SIGKILL of an expert while every shard is damaged: nobody may serve what its next life reads."""

    def inject(cluster: Cluster, alive: Victims, generator: random.Random) -> Victims:
        at_s = time.monotonic()
        with damaged(Path(str(cluster.spec.model))):
            victims = send(signal.SIGKILL, name)(cluster, alive, generator)
            while not any("cannot load" in text for _, text in cluster.events_after(at_s)):
                if time.monotonic() > at_s + ORDER_S:
                    raise BrokenPromise(f"{name} was not refused though every shard is damaged")
                time.sleep(POLL_S)
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


def obey(*orders: Order, killing: str | None = None) -> Inject:
    """Orders, each when the one before is carried out; killing: who dies while the first is."""

    def inject(cluster: Cluster, alive: Victims, _: random.Random) -> Victims:
        for number, (order, arguments) in enumerate(orders):
            deadline_s = time.monotonic() + ORDER_S
            while number and not is_settled(cluster) and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
            cluster.order(order, arguments)
            if killing is not None and not number:
                time.sleep(MOVING_S)
                _signal(alive[killing], signal.SIGKILL)
        return {order: 0 for order, _ in orders}

    return inject


def is_settled(cluster: Cluster, *_: Victims) -> bool:
    """Whether everything that was ordered is so."""
    try:
        return bool(cluster.snapshot()["settled"])
    except Unavailable:
        return False  # the controller is in between two lives


def kill_any(_: Cluster, alive: Victims, generator: random.Random) -> Victims:
    """SIGKILL to one of all but the ingress replicas, whose clients' connections would end with them."""
    name = generator.choice(sorted(name for name in alive if not name.startswith(INGRESS)))
    _signal(alive[name], signal.SIGKILL)
    return {name: alive[name]}


def _fault(
    name: str,
    about: str,
    inject: Inject,
    *,
    is_replicated: bool = True,
    may_cut: bool = False,
    spoils_files: bool = False,
) -> Fault:
    return Fault(
        name=name,
        about=about,
        is_replicated=is_replicated,
        inject=inject,
        may_cut=may_cut,
        spoils_files=spoils_files,
    )


def _ordered(name: str, about: str, *orders: Order, killing: str | None = None) -> Fault:
    return Fault(
        name=name,
        about=about,
        is_replicated=True,
        inject=obey(*orders, killing=killing),
        is_over=is_settled,
        requests_before=TO_COMPARE,
    )


def _replace(file: Path, data: bytes | bytearray) -> None:
    """Whoever has it open reads on in the old one."""
    beside = file.with_suffix(".new")
    beside.write_bytes(data)
    beside.replace(file)


def _nothing(_: Cluster, __: Victims, ___: random.Random) -> Victims:
    return {}


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS: Sequence[Fault] = (
    _fault("none", "no fault", _nothing, is_replicated=False),
    _fault(
        "expert-kill-only", "SIGKILL of an expert, the only copy", send(KILL, "expert-0"), is_replicated=False
    ),
    _fault(
        "attention-kill-only",
        "SIGKILL of the only attention actor",
        send(KILL, "attention-0"),
        is_replicated=False,
    ),
    _fault(
        "expert-stop-only",
        "SIGSTOP of an expert for ever, the only copy",
        send(STOP, "expert-1"),
        is_replicated=False,
    ),
    _fault(
        "attention-stop-only",
        "SIGSTOP of the only attention actor for ever",
        send(STOP, "attention-0"),
        is_replicated=False,
    ),
    _fault("none-2", "no fault", _nothing),
    _fault("expert-kill", "SIGKILL of an expert with a replica", send(KILL, "expert-0")),
    _fault("experts-kill", "SIGKILL of both replicas", send(KILL, "expert-0", "expert-1")),
    _fault("attention-kill", "SIGKILL of one of two attention actors", send(KILL, "attention-0")),
    _fault("expert-hiccup", "SIGSTOP of an expert for 3 s", hiccup("expert-1")),
    _fault("expert-stop", "SIGSTOP of an expert for ever", send(STOP, "expert-0")),
    _fault("expert-slow", "an expert at a tenth of its speed for 5 s", slow("expert-0")),
    _fault("attention-hiccup", "SIGSTOP of an attention actor for 3 s", hiccup("attention-1")),
    _fault("attention-stop", "SIGSTOP of an attention actor for ever", send(STOP, "attention-0")),
    _fault("controller-kill", "SIGKILL of the controller", send(KILL, CONTROLLER)),
    _fault("expert-nan", "an expert answers NaN", spoil("expert-1")),
    _fault(
        "ingress-kill", "SIGKILL of one of two ingress replicas", send(KILL, f"{INGRESS}-0"), may_cut=True
    ),
    _fault(
        "shard-damaged",
        "SIGKILL of an expert while the checkpoint is damaged, which is mended later",
        damage("expert-0"),
        spoils_files=True,
    ),
    _fault("poison", "a request that ends whoever computes it: fails, after two of them", poison),
    _ordered(
        "scale-experts", "2 to 4 expert actors and back", ("scale", {"experts": 4}), ("scale", {"experts": 2})
    ),
    _ordered(
        "scale-experts-kill",
        "the same, and a SIGKILL while experts move",
        *(("scale", {"experts": 4}), ("scale", {"experts": 2})),
        killing="expert-0",
    ),
    _ordered(
        "scale-attention",
        "2 to 3 attention actors and back",
        ("scale", {"attention": 3}),
        ("scale", {"attention": 2}),
    ),
    _ordered(
        "drain",
        "an attention actor drained, another begun",
        ("drain", {"name": "attention-0"}),
        ("scale", {"attention": 2}),
    ),
    _ordered("restart", "every actor and the controller replaced, one after another", ("restart", {})),
)
BY_NAME = {fault.name: fault for fault in FAULTS}


def _signal(pid: int, number: signal.Signals) -> None:
    """To an actor of our cluster, if it still lives."""
    try:
        process = psutil.Process(pid)
        if _title(process).startswith("ray::"):
            process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def _titled(title: str) -> list[int]:
    return [p.pid for p in psutil.Process().children(recursive=True) if _title(p).startswith(title)]


def _title(process: psutil.Process) -> str:
    """What Ray calls it, without the method that it is in; empty if it is gone."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return process.cmdline()[0].split("/")[-1].partition(".")[0].strip()
    except (psutil.Error, IndexError):
        return ""
