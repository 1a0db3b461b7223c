"""An asker on one GPU whose expert actors on the other are killed or suspended in mid-step.

    python -m bench.gpu_faults asker KILLS STOPS AT_ONCE
    python -m bench.gpu_faults victim INCARNATION PARENT

The asker's own GPU holds a replica of every expert, so that the step after the loss needs nobody new. Every
step's result is compared with that of a run without faults, bit by bit. Knows nothing of requests.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.gpu_link import captured, report
from bench.true_width import Slice, random_inputs, random_slice
from kernels.fp8_rows import quantize_rows
from kernels.mailbox import Posted, post
from model.cache import PAGE_TOKENS
from model.fp8_away import AwayStep
from model.fp8_random import RandomLayers
from model.fp8_shard import Fp8Shard, ServingUnit, last_expert, one_expert
from model.fp8_step import DecodeStep, StepInputs
from model.fp8_walk import WalkTables
from model.fp8_weights import Fp8Dense, Fp8Layer, Fp8Moe
from model.true_width import true_width
from router.connection import Connection, connect
from router.cuda_memory import CudaHost
from router.lanes import Life
from router.listener import Listener
from router.shm import BoxOpened, Geometry, OpenBox
from router.shm_asker import AskerMailbox
from router.shm_expert import ExpertMailbox
from router.transport import PeerLost
from router.view import ActorId, ExpertActor
from router.wire import kinds

TOKEN = b"a bench between processes of one parent"
ROWS, CONTEXT, EXPERTS, MOE_LAYERS, UNITS = 32, 1024, 64, 2, 4
CHOSEN = (0, 1, 8, 9, 16, 17, 24, 25)  # the gate's bias allows no others, so that nobody need hold the rest
PATIENCE_S = 0.1
FIRST_S = 20.0
ORPHAN_S = 1.0
CONFIG = true_width(moe_layers=MOE_LAYERS, num_experts=EXPERTS)
GEOMETRY = Geometry(
    slots=1,
    capacity=ROWS,
    width=CONFIG.hidden_size,
    per_row=CONFIG.num_experts_per_token,
    places=CONFIG.num_experts_per_token + 1,
)


def main() -> None:
    with torch.inference_mode():
        if sys.argv[1] == "victim":
            serve(int(sys.argv[2]), int(sys.argv[3]))
        else:
            Asker().run(*map(int, sys.argv[2:5]))


def _slice(device: torch.device, pages: int) -> Slice:
    torch.cuda.set_device(device)
    torch.manual_seed(0)
    made = random_slice(CONFIG, pages, device)
    for layer in made.layers:
        if isinstance(layer.ffn, Fp8Moe):
            layer.ffn.bias_E[list(CHOSEN)] = 10.0
    return made


def _shard_of(layer_of: Callable[[int], Fp8Layer], device: torch.device) -> Fp8Shard:
    """One layer at a time: many victims start together."""
    shard = Fp8Shard(CONFIG, len(CHOSEN) * MOE_LAYERS, device)
    for index in range(CONFIG.num_layers):
        _fill(shard, index, layer_of(index).ffn)
    return shard


def _fill(shard: Fp8Shard, index: int, ffn: Fp8Dense | Fp8Moe) -> None:
    if isinstance(ffn, Fp8Moe):
        for expert in CHOSEN:
            shard.fill(index, expert, one_expert(ffn.gate_up, expert), one_expert(ffn.down, expert))


class Turns:
    """An expert actor's turns as a graph, launched two ahead."""

    def __init__(self, shard: Fp8Shard, mailbox: ExpertMailbox) -> None:
        self._unit = unit = ServingUnit(shard, mailbox.inbox, tile_rows=32, most_experts=len(CHOSEN))
        self.stream = torch.cuda.Stream(priority=-1)  # of a pool of its own: see bench/gpu_steps.py
        with torch.cuda.stream(self.stream):
            unit.run()

        def turns() -> None:
            for _ in range(UNITS):
                unit.run()

        self._graph = captured(turns, self.stream)
        self._ahead: list[torch.cuda.Event] = []

    def launch(self) -> None:
        if len(self._ahead) > 1:
            self._ahead.pop(0).synchronize()
        with torch.cuda.stream(self.stream):
            self._graph.replay()
            event = torch.cuda.Event()
            event.record()
        self._ahead.append(event)


def serve(incarnation: int, parent: int) -> None:
    """A victim: serve until killed, or until the parent is gone."""
    begun_s = time.monotonic()
    device = torch.device("cuda", 1)
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)
    torch.cuda.synchronize()
    context_s = time.monotonic() - begun_s
    shard = _shard_of(RandomLayers(CONFIG, device).layer, device)
    torch.cuda.empty_cache()
    host = CudaHost(device)
    mailbox = ExpertMailbox(GEOMETRY, 1, host.allocate, host.open)
    turns = Turns(shard, mailbox)
    listener = Listener(
        "127.0.0.1", 0, token=TOKEN, actor="x", incarnation=incarnation, accepted=kinds(OpenBox)
    )
    made_s = time.monotonic() - begun_s
    report("ready", port=listener.port, context_s=round(context_s, 2), made_s=round(made_s, 2))
    is_asked = False
    while os.getppid() == parent:
        for arrival in listener.poll(0.0 if is_asked else 0.2):
            life = Life(actor=arrival.peer.actor, incarnation=1)
            if arrival.frame is None:
                mailbox.lose(life)
                is_asked = False
            elif isinstance(arrival.frame.message, OpenBox):
                with torch.cuda.stream(turns.stream):
                    opened = mailbox.open(life, arrival.frame.message)
                torch.cuda.synchronize()
                listener.send(arrival.peer, opened)
                is_asked = True
        if is_asked:
            turns.launch()


@dataclass
class Victim:
    process: subprocess.Popen[str]
    life: Life
    spawned_s: float
    port: int = 0
    ready_s: float = 0.0
    context_s: float = 0.0

    @staticmethod
    def spawn(incarnation: int) -> Victim:
        command = [sys.executable, "-m", "bench.gpu_faults", "victim", str(incarnation), str(os.getpid())]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return Victim(process, Life(actor="x", incarnation=incarnation), time.monotonic())

    def await_ready(self) -> None:
        assert self.process.stdout is not None, "a pipe was asked for"
        said = json.loads(self.process.stdout.readline())
        self.port, self.context_s = said["port"], said["context_s"]
        self.ready_s = time.monotonic() - self.spawned_s

    def end(self, number: signal.Signals) -> float:
        """Send a signal now; the time of it."""
        now_s = time.monotonic()
        self.process.send_signal(number)
        return now_s


class Asker:
    """Steps, one after the other, whoever computes the experts."""

    def __init__(self) -> None:
        self._device = torch.device("cuda", 0)
        made = _slice(self._device, ROWS * CONTEXT // PAGE_TOKENS)
        self._made = made
        torch.manual_seed(1)
        inputs = random_inputs(CONFIG, ROWS, CONTEXT, made.cache.num_pages)
        self._embedded_RD = inputs.hidden_RD.clone()
        tables = WalkTables(CONFIG, CONTEXT, self._device)
        alone = DecodeStep(CONFIG, inputs, tables)
        self._wanted_RD = self._walk(inputs, alone).clone()
        shard = _shard_of(made.layers.__getitem__, self._device)
        for index, layer in enumerate(made.layers):
            ffn = layer.ffn
            if isinstance(ffn, Fp8Moe):
                kept = [last_expert(ffn.gate_up), last_expert(ffn.down)]
                made.layers[index] = replace(layer, ffn=replace(ffn, gate_up=kept[0], down=kept[1]))
        host = CudaHost(self._device)
        shape = (CONFIG.num_layers, EXPERTS)
        self._mailbox = AskerMailbox(GEOMETRY, 3, shape, host.allocate, host.open)
        own = ExpertMailbox(GEOMETRY, 1, host.allocate, host.open)
        self._turns = Turns(shard, own)
        self._own = Life(actor="own", incarnation=1)
        me = Life(actor="a", incarnation=1)
        self._mailbox.opened(self._own, own.open(me, self._mailbox.ask(self._own)))
        self._beside = torch.cuda.Stream(priority=-1)
        self._steps = torch.cuda.Stream()
        self._lost = torch.zeros(3, dtype=torch.int32, pin_memory=True)
        step = AwayStep(CONFIG, inputs, tables, Posted(self._mailbox.outboxes[0]))
        self._kept = (inputs, step)  # a graph keeps nothing alive that it reads and writes
        self._mailbox.patience.fill_(round(FIRST_S * 1e9))
        self._walk(inputs, step)  # nobody is asked yet: what is loaded while a kernel waits waits for it
        torch.cuda.synchronize()
        self._ask(self._own)
        with torch.cuda.stream(self._steps):
            self._walk(inputs, step)
            done = torch.cuda.Event()
            done.record()
        while not done.query():
            self._turns.launch()

        def whole() -> None:
            self._out_RD = self._walk(inputs, step)
            self._lost.copy_(self._mailbox.lost, non_blocking=True)

        self._graph = captured(whole, self._steps)
        self._mailbox.patience.fill_(round(PATIENCE_S * 1e9))
        torch.cuda.synchronize()

    def run(self, kills: int, stops: int, at_once: int) -> None:
        own_ms = [self._step(self._turns.launch, lambda: None) * 1e3 for _ in range(20)]
        report("own", ms=_figures(own_ms), identical=self._is_wanted())
        plan = [signal.SIGKILL] * kills + [signal.SIGSTOP] * stops
        trials: list[dict[str, Any]] = []
        while plan:
            wave, plan = plan[:at_once], plan[at_once:]
            victims = [Victim.spawn(len(trials) + place + 1) for place in range(len(wave))]
            for victim in victims:
                victim.await_ready()
            report(
                "wave",
                victims=len(wave),
                context_s=_figures([v.context_s for v in victims]),
                ready_s=_figures([v.ready_s for v in victims]),
            )
            for number, victim in zip(wave, victims, strict=True):
                trials.append(self._trial(victim, number))
                report("trial", **trials[-1])
        self._orphan_writes(Victim.spawn(len(trials) + 1))

    def _walk(self, inputs: StepInputs, step: DecodeStep) -> Tensor:
        inputs.hidden_RD.copy_(self._embedded_RD)
        return step.run(self._made.layers, self._made.cache, self._made.last_norm_D)

    def _ask(self, life: Life) -> None:
        self._mailbox.set_owners({layer: [life] * EXPERTS for layer in range(CONFIG.num_layers)})
        torch.cuda.synchronize()

    def _step(self, pump: Callable[[], None], listen: Callable[[], None]) -> float:
        """Seconds of one step; `listen` while it is under way."""
        start_s = time.monotonic()
        with torch.cuda.stream(self._steps):
            self._graph.replay()
            done = torch.cuda.Event()
            done.record()
        while not done.query():
            pump()
            listen()
        return time.monotonic() - start_s

    def _is_wanted(self) -> bool:
        return bool(torch.equal(self._out_RD, self._wanted_RD))

    def _connected(self, victim: Victim) -> Connection:
        actor = ExpertActor(
            actor_id=ActorId("x"), incarnation=victim.life.incarnation, host="127.0.0.1", port=victim.port
        )
        connection = connect(actor, token=TOKEN, actor="a", incarnation=1, accepted=kinds(BoxOpened))
        connection.send(self._mailbox.ask(victim.life))
        while not (frames := list(connection.receive())):
            time.sleep(0.0005)
        message = frames[0].message
        assert isinstance(message, BoxOpened), "nothing else is accepted"
        self._mailbox.opened(victim.life, message)
        return connection

    def _trial(self, victim: Victim, number: signal.Signals) -> dict[str, Any]:
        """Steps with the victim, a signal in the midst of one, and the step after that."""
        connection = self._connected(victim)
        self._ask(victim.life)
        steady = [self._step(lambda: None, lambda: None) * 1e3 for _ in range(10)]
        identical = self._is_wanted()
        heard_s: list[float] = []
        struck_s: list[float] = []

        def listen() -> None:
            try:
                list(connection.receive())
            except PeerLost:
                if not heard_s:
                    heard_s.append(time.monotonic())
                    self._mailbox.tell_lost(victim.life, self._beside)

        delay_s = random.uniform(0.001, 0.02)
        timer = threading.Timer(delay_s, lambda: struck_s.append(victim.end(number)))
        timer.start()
        limit_s = time.monotonic() + 10.0
        while not (lost := self._mailbox.found_lost(self._lost)) and time.monotonic() < limit_s:
            self._step(lambda: None, listen)
        found_s = time.monotonic()
        timer.join()
        self._mailbox.lose(victim.life)
        self._ask(self._own)
        again_s = self._step(self._turns.launch, lambda: None)
        done_s = time.monotonic()
        identical_after = self._is_wanted()
        if number == signal.SIGSTOP:  # it wakes up, and nobody believes it
            victim.end(signal.SIGCONT)
            for _ in range(20):
                self._step(self._turns.launch, lambda: None)
                identical_after &= self._is_wanted()
            victim.end(signal.SIGKILL)
        victim.process.wait()
        torch.cuda.synchronize()
        self._mailbox.bury(victim.life)
        connection.close()
        return {
            "signal": number.name,
            "steady_ms": round(statistics.median(steady), 3),
            "heard_ms": round((heard_s[0] - struck_s[0]) * 1e3, 2) if heard_s and struck_s else None,
            "found_ms": round((found_s - struck_s[0]) * 1e3, 2) if struck_s else None,
            "done_ms": round((done_s - struck_s[0]) * 1e3, 2) if struck_s else None,
            "again_ms": round(again_s * 1e3, 2),
            "why": list(lost.values()),
            "identical": identical and identical_after,
        }

    def _orphan_writes(self, victim: Victim) -> None:
        """Go on writing into the memory of a process that is dead: does the device mind?"""
        victim.await_ready()
        connection = self._connected(victim)
        self._ask(victim.life)
        self._step(lambda: None, lambda: None)
        normed8 = quantize_rows(torch.randn(ROWS, CONFIG.hidden_size, device=self._device))
        experts = torch.arange(8, dtype=torch.int32, device=self._device).repeat(ROWS, 1)
        outbox = self._mailbox.outboxes[0]

        def write(seconds: float) -> int:
            count, until_s = 0, time.monotonic() + seconds
            while time.monotonic() < until_s:
                for _ in range(50):
                    self._mailbox.lost.zero_()
                    post(normed8, experts, 1, outbox)
                torch.cuda.synchronize()
                count += 50
            return count

        before = write(0.1)
        timer = threading.Timer(0.05, lambda: victim.end(signal.SIGKILL))
        timer.start()
        try:
            during = write(ORPHAN_S)
            victim.process.wait()
            after = write(ORPHAN_S)
        except RuntimeError as error:
            report("orphan", error=str(error)[:300])
            return
        self._mailbox.lose(victim.life)
        self._mailbox.bury(victim.life)
        connection.close()
        self._ask(self._own)
        outbox.arrived.zero_()
        self._mailbox.lost.zero_()
        self._step(self._turns.launch, lambda: None)
        report("orphan", before=before, during=during, after=after, identical=self._is_wanted())


def _figures(values: list[float]) -> dict[str, float]:
    return {
        "p50": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
