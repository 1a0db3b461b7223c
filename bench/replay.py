"""An open loop into what runs in this process, or behind a pipe: an engine, or static batches.

Knows nothing of HTTP.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from actors.engine import Engine
from bench.arrivals import UNFINISHED
from bench.mix import Request
from bench.outcome import Outcome
from bench.timing import Answer
from model.sampling import Sampling

MOST_TOGETHER = 16  # in a static batch
IDLE_S = 0.002


def replay(engine: Engine, requests: Sequence[Request]) -> list[Outcome]:
    """Each is submitted when it is due; in the order given."""
    start_s = time.perf_counter()
    outcomes = [Outcome(due_s=start_s + one.at_s, wanted_tokens=one.new_tokens) for one in requests]
    coming = deque(enumerate(requests))
    while coming or engine.has_work:
        while coming and outcomes[coming[0][0]].due_s <= time.perf_counter():
            number, request = coming.popleft()
            sampling = Sampling(max_tokens=request.new_tokens, temperature=0.0, ignore_eos=True)
            ended = engine.submit("bench", str(number), request.prompt, [], sampling)
            assert ended is None, f"request {number} was not taken: {ended}"
        if not engine.has_work:
            time.sleep(IDLE_S)
            continue
        for events in engine.step().values():
            for event in events:
                outcomes[int(event.request_id)].take(len(event.token_ids), time.perf_counter())
    return outcomes


def replay_batches(
    generate: Callable[..., list[Answer]], requests: Sequence[Request], patience_s: float
) -> list[Outcome]:
    """generate: of transformers or llama.cpp, all set.

    Static batches of all that waits, MOST_TOGETHER at most; the next begins when the longest has ended.
    """
    start_s = time.perf_counter()
    outcomes = [
        Outcome(due_s=start_s + one.at_s, wanted_tokens=one.new_tokens, error=UNFINISHED) for one in requests
    ]
    coming = deque(zip(requests, outcomes, strict=True))
    while coming and time.perf_counter() < start_s + requests[-1].at_s + patience_s:
        now_s = time.perf_counter()
        due = [pair for pair in coming if pair[1].due_s <= now_s][:MOST_TOGETHER]
        if not due:
            time.sleep(IDLE_S)
            continue
        for _ in due:
            coming.popleft()
        answers = generate(
            [request.prompt for request, _ in due],
            new_tokens=max(request.new_tokens for request, _ in due),
            batch=len(due),
        )
        for (request, outcome), answer in zip(due, answers, strict=True):
            for arrival_s in answer.arrivals_s[: request.new_tokens]:
                outcome.take(1, arrival_s)
            outcome.error = None
    return outcomes
