"""Any one process of a real cluster may die or hang: no request fails, the tokens are the same.

`shoal chaos` tries many more (docs/reliability.md); these are the ones that a cluster of threads cannot show.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from model.sampling import Sampling
from tests.ray.conftest import Served, served
from tests.ray.test_serving import TOKENS, complete, oracle, prompt, stream_tokens
from tests.shoals import generate, local_engine

pytestmark = [pytest.mark.ray, pytest.mark.timeout(420)]

LIMIT_S = 90.0


@pytest.fixture(scope="module", name="pair")
def _pair(checkpoint: Path) -> Iterator[Served]:
    """Two attention actors, two copies of each expert."""
    with served(checkpoint, "--attention", "2", "--experts", "2", "--replicas-per-expert", "2") as running:
        yield running


def controllers(pair: Served) -> set[int]:
    """Process ids by the name that Ray gives them."""
    found = set()
    for process in pair.descendants():
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Controller"):
                found.add(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


def alive(pair: Served) -> set[int]:
    """Process ids of the actors that serve: going by Ray's titles would count forks of them too."""
    pids = {actor["pid"] for actor in pair.admin("/snapshot")["actors"] if actor["pid"]}
    return {pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"}


def until(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.1)


def test_two_attention_actors_and_two_copies_of_each_expert_give_the_bits_of_one_engine(pair: Served):
    prompts = [prompt(10 + 7 * i, seed=i) for i in range(16)]
    greedy = Sampling(max_tokens=TOKENS, temperature=0.0, ignore_eos=True, logprobs=0)
    expected = generate(local_engine(pair.checkpoint), prompts, greedy)
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda p: complete(pair.url, p, logprobs=0), prompts))
    for one, other in zip(expected, got, strict=True):
        assert one.token_ids == other["token_ids"]
        assert one.logprobs == other["logprobs"]["token_logprobs"]


def test_sigkill_of_the_controller_is_not_seen_and_its_next_life_still_replaces_the_dead(pair: Served):
    prompt_ids = prompt(40, seed=5)
    expected = oracle(pair.checkpoint, prompt_ids)
    [controller] = controllers(pair)
    actor_ids = ("attention-0", "attention-1", "expert-0", "expert-1")
    pids = {pair.pid_of(actor_id) for actor_id in actor_ids}
    kill = lambda pid: psutil.Process(pid).send_signal(signal.SIGKILL)  # noqa: E731
    assert stream_tokens(pair.url, prompt_ids, on_first=lambda: kill(controller)) == expected
    until(lambda: len(controllers(pair) - {controller}) == 1, "no controller came back")
    until(lambda: alive(pair) == pids, "its death was that of others")
    victim = pair.pid_of("expert-0")
    assert stream_tokens(pair.url, prompt_ids, on_first=lambda: kill(victim)) == expected
    until(lambda: len(alive(pair) - {victim}) == len(pids), "the dead expert actor was not replaced")
    assert complete(pair.url, prompt_ids)["token_ids"] == expected


def test_an_attention_actor_and_an_expert_that_hang_are_left_and_ended(pair: Served):
    prompt_ids = prompt(70, seed=6)
    expected = oracle(pair.checkpoint, prompt_ids)
    for actor_id in ("attention-0", "attention-1", "expert-1"):
        hung = psutil.Process(pair.pid_of(actor_id))
        assert stream_tokens(pair.url, prompt_ids, on_first=hung.suspend) == expected
        until(lambda hung=hung: not hung.is_running(), f"{actor_id} hangs and was not ended")
