"""HTTP on one GPU: what clients see, also over a death.

    python -m bench.gpu_serving --out bench/results/gpu_serving.json

`shoal serve random:5 --device cuda` as a user starts it: DeepSeek-V3.2's true width, one dense and four MoE
layers of noise. What HTTP and the actors add to bench.engine, what the metrics say meanwhile, and whether
answers stay the same alone, among others and over the death of the actor that makes them. Knows nothing of
kernels.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu_clients import Clients
from bench.gpu_watch import Watch
from bench.parts import Report
from bench.server import STOP_TIMEOUT_S, Server, serving
from bench.timing import Answer, Round, figures

START_S = 280.0  # kernels are compiled and graphs captured
KILL_AFTER_S = 2.0
SECONDS = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """cells: (requests at once, tokens of a prompt, requests). num_ids: of which prompts are made."""

    num_ids: int = 100_000
    cells: tuple[tuple[int, int, int], ...] = (
        *((1, 1000, 4), (16, 1000, 32), (64, 1000, 128)),
        *((1, 4000, 3), (16, 4000, 16), (64, 4000, 64)),
    )
    more_cells: tuple[tuple[int, int, int], ...] = ((16, 1000, 32), (64, 1000, 128))  # of other ingresses
    new_tokens: int = 128
    streams: int = 16  # that meet a death
    long_tokens: int = 600  # of each of those


QUICK = Sizes(
    num_ids=256,  # bytes: small models know no more
    cells=((1, 40, 2), (4, 40, 8)),
    more_cells=((4, 40, 8),),
    new_tokens=128,
    streams=4,
    long_tokens=600,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="random:5")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--ingress", type=int, nargs="+", default=[1, 4], help="replicas, one server for each"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="no part begins later")
    parser.add_argument("--quick", action="store_true", help="small numbers, to try it on a CPU")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    report = Report("bench.gpu_serving", given.out)
    for place, replicas in enumerate(given.ingress):
        if report.seconds > given.seconds:
            report.say(f"no time for {replicas} ingresses")
            continue
        flags = ["--device", given.device, "--ingress", str(replicas)]
        if given.device == "cpu":
            flags += ["--experts", "0", "--standbys", "0", "--draft-tokens", "0"]
        one_server(
            report, given, flags, f"{replicas} ingress: ", QUICK if given.quick else Sizes(), place == 0
        )
    report.say("all parts done" if not report.failed else f"{report.failed} parts FAILED")
    sys.exit(bool(report.failed))


def one_server(
    report: Report, given: argparse.Namespace, flags: list[str], name: str, sizes: Sizes, is_first: bool
) -> None:
    """From its start to its end; all parts on the first one, on others only what clients see."""
    servers = list[Server]()
    words = given.out.with_suffix(f".{flags[3]}.log").open("w+") if given.out else None
    with ExitStack() as stack:

        def start() -> dict[str, Any]:
            start_s = time.perf_counter()
            server = stack.enter_context(serving(given.model, flags, patience_s=START_S, words=words))
            stack.enter_context(server.awake())
            servers.append(server)
            return {"ready_s": round(time.perf_counter() - start_s, 1), "says_s": server.ready["seconds"]}

        report.part(f"{name}start", start)
        for server in servers:
            clients = stack.enter_context(Clients(server.url, sizes.num_ids))
            parts = all_parts(clients, Watch(server.ready["admin"]), sizes, is_first)
            for part, compute in parts.items():
                if report.seconds > given.seconds:
                    report.say(f"no time for {part}")
                else:
                    report.part(name + part, compute)
            report.part(f"{name}end", lambda: ended(stack))


def all_parts(clients: Clients, watch: Watch, sizes: Sizes, is_first: bool) -> dict[str, Callable[[], Any]]:
    """By name, in their order."""
    parts: dict[str, Callable[[], Any]] = {
        "warm-up": lambda: len(clients.ask(clients.prompts("warm", 8, 200), 8, 8))
    }
    for at_once, tokens, requests in sizes.cells if is_first else sizes.more_cells:
        parts[f"{at_once} at once, prompts of {tokens}"] = partial(
            cell, clients, watch, at_once, tokens, requests, sizes.new_tokens
        )
    if is_first:
        most = max(at_once for at_once, _, _ in sizes.cells)
        parts |= {
            "load of the experts": watch.expert_load,
            "the same answer alone and among others": lambda: company(clients, most, sizes.new_tokens),
            "where a step's time goes": lambda: traced(clients, watch, most, sizes.new_tokens),
            "a death in the middle": lambda: death(clients, watch, sizes),
            "load of the experts, next life": watch.expert_load,
        }
    return parts


def cell(
    clients: Clients, watch: Watch, at_once: int, tokens: int, requests: int, new_tokens: int
) -> dict[str, Any]:
    """A closed loop of prompts that nobody has seen."""
    before = watch.loop()
    answers = clients.ask(clients.prompts(f"{at_once} {tokens}", requests, tokens), new_tokens, at_once)
    found = figures([Round(answers=tuple(answers), foreign_cores=0.0)])
    return {
        "requests": requests,
        "tokens_per_s": round(found.tokens_per_s, 1),
        "ttft_ms_p50_p99": [round(value, 1) for value in found.ttft_ms],
        "tpot_ms_p50_p99": [round(value, 2) for value in found.tpot_ms],
        "events_per_token": round(_events_per_token(answers), 2),
        **watch.loop().since(before),
    }


def _events_per_token(answers: list[Answer]) -> float:
    """Less than one where the server or a client brought several tokens at a time."""
    arrivals = [at_s for answer in answers for at_s in answer.arrivals_s]
    return len(set(arrivals)) / len(arrivals)


def company(clients: Clients, at_once: int, new_tokens: int) -> str:
    """A greedy answer, asked for alone and again in a full step."""
    [own] = clients.prompts("own", 1, 700)
    [alone] = clients.ask([own], new_tokens, 1)
    others = clients.prompts("others", at_once - 1, 900)
    among = clients.ask([*others[: at_once // 2], own, *others[at_once // 2 :]], new_tokens, at_once)
    assert among[at_once // 2].token_ids == alone.token_ids, (alone.token_ids, among[at_once // 2].token_ids)
    return f"{len(alone.token_ids)} tokens, {len(set(alone.token_ids))} different, among {at_once - 1} others"


def traced(clients: Clients, watch: Watch, at_once: int, new_tokens: int) -> dict[str, Any]:
    """Milliseconds of a step by part, while so many decode."""
    asked = clients.begin(clients.prompts("traced", at_once, 100), 4 * new_tokens, at_once)
    time.sleep(KILL_AFTER_S)
    found = watch.trace(steps=40)
    asked()
    return found


def death(clients: Clients, watch: Watch, sizes: Sizes) -> dict[str, Any]:
    """SIGKILL for the only attention actor while streams are under way, beside the same undisturbed."""
    prompts = clients.prompts("death", sizes.streams, 500)
    wanted = clients.ask(prompts, sizes.long_tokens, sizes.streams)
    asked = clients.begin(prompts, sizes.long_tokens, sizes.streams)
    time.sleep(KILL_AFTER_S)
    killed_s = time.perf_counter()
    watch.kill()
    answers = asked()
    had = [sum(at_s < killed_s for at_s in answer.arrivals_s) for answer in answers]
    back_s = [min(at_s for at_s in one.arrivals_s if at_s > killed_s + 0.5) - killed_s for one in answers]
    same = sum(one.token_ids == other.token_ids for one, other in zip(wanted, answers, strict=True))
    found = {
        "streams": len(answers),
        "with the same tokens": same,
        "tokens before": [min(had), max(had)],
        "next token after s": [round(min(back_s), 1), round(max(back_s), 1)],
        "controller says recovered in s": watch.attention()["recovery_s"],
    }
    assert same == len(answers), found
    assert min(had) > 0 and max(had) < sizes.long_tokens, f"not in the middle: {found}"
    return found


def ended(stack: ExitStack) -> str:
    start_s = time.perf_counter()
    stack.close()
    seconds = time.perf_counter() - start_s
    assert seconds < STOP_TIMEOUT_S, "it had to be killed"
    return f"SIGTERM to gone: {seconds:.1f} s"


if __name__ == "__main__":
    main()
