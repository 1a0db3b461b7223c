"""How quick the engine on a GPU is, and what of a step is not the device's.

Sequences begin on pages of noise that are published as their past, so that a long context costs no prefill.
Knows nothing of what is right.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import torch

from actors.engine import Engine, OwnedEvents
from actors.fp8_runner import Fp8Parts
from actors.row_runner import size_for
from actors.scheduler import SchedulerLimits
from actors.sequence import Sequence as LiveSequence
from bench.engine_checks import GREEDY, SAMPLED, Said, guessing, make_engine
from bench.true_width import fill_with_noise
from model.cache import PAGE_TOKENS
from model.row_buffers import RowSpan
from model.sampling import Sampling

WARM_UP = 5


class DecodeSpeed:
    """Steps of sequences that each see about `context` tokens."""

    def __init__(self, parts: Fp8Parts, limits: SchedulerLimits, context: int, steps: int) -> None:
        self._parts, self._limits, self._context, self._steps = parts, limits, context, steps
        self._said: list[Said] = []

    def sampled(self, sequences: int) -> dict[str, Any]:
        """With a temperature and top_p, without drafts."""
        return self.plain(sequences, SAMPLED)

    def plain(self, sequences: int, sampling: Sampling = GREEDY) -> dict[str, Any]:
        """Without drafts."""
        engine = self._begun(sequences, sampling)
        self._said = [Said()] * sequences
        figures = self._timed(engine)
        return figures | self._shares(figures["step_ms"], sequences, draft_tokens=0)

    def drafted(self, sequences: int) -> dict[str, Any]:
        """As `plain` just before, and every draft is what came there: the most that can be gained."""
        engine = self._begun(sequences, GREEDY, draft_tokens=1)
        with guessing(engine, self._said, share=1.0):
            figures = self._timed(engine)
        held = {"drafted": engine.counters.drafted[0], "held": engine.counters.accepted[0]}
        return figures | held | self._shares(figures["step_ms"], sequences, draft_tokens=1)

    def beside_prompts(self, sequences: int, chunk_tokens: int) -> dict[str, Any]:
        """Steps that carry a chunk of a prompt beside the tokens of those that decode."""
        limits = replace(self._limits, chunk_tokens=chunk_tokens)
        engine = self._begun(sequences, GREEDY, limits=limits)
        for _ in range(WARM_UP):
            engine.step()
        prompts = _prompts(self._parts, 2, self._context)
        told = replace(GREEDY, max_tokens=1)
        for i, prompt in enumerate(prompts, sequences):
            assert engine.submit("bench", str(i), prompt, [], told) is None
        times, start_s = [], time.perf_counter()
        while engine.num_running + engine.num_waiting > sequences:
            begin_s = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - begin_s)
        seconds = time.perf_counter() - start_s
        return {
            "sequences": sequences,
            "chunk_tokens": chunk_tokens,
            "step_ms": round(statistics.median(times) * 1e3, 3),
            "prompt_tokens_per_s": round(sum(map(len, prompts)) / seconds, 1),
        }

    def _begun(
        self,
        sequences: int,
        sampling: Sampling,
        draft_tokens: int = 0,
        limits: SchedulerLimits | None = None,
    ) -> Engine:
        torch.manual_seed(0)
        fill_with_noise(self._parts.cache)
        engine = make_engine(
            self._parts, limits or self._limits, prefix_cache=True, draft_tokens=draft_tokens
        )
        sampling = replace(sampling, max_tokens=2 * (WARM_UP + self._steps))
        for i, prompt in enumerate(_prompts(self._parts, sequences, self._context + 1)):
            publish_past(engine, prompt)
            assert engine.submit("bench", str(i), prompt, [], sampling) is None
        return engine

    def _timed(self, engine: Engine) -> dict[str, Any]:
        steps = self._steps
        if engine._runner.draft_tokens:  # two tokens a step, of those that `plain` saw
            steps = (self._steps - WARM_UP) // 2
        for _ in range(WARM_UP):
            self._note(engine.step())
        laps = dict(engine.counters.laps.seconds)
        before, start_s = engine.counters.decode_tokens, time.perf_counter()
        times = []
        for _ in range(steps):
            begin_s = time.perf_counter()
            events = engine.step()
            times.append(time.perf_counter() - begin_s)
            self._note(events)
        seconds = time.perf_counter() - start_s
        now = engine.counters.laps.seconds
        return {
            "sequences": engine.num_running,
            "context": self._context,
            "tokens_per_s": round((engine.counters.decode_tokens - before) / seconds, 1),
            "step_ms": round(statistics.median(times) * 1e3, 3),
            "parts_ms": {part: round((now[part] - laps[part]) / steps * 1e3, 3) for part in now},
        }

    def _note(self, events: OwnedEvents) -> None:
        for event in [event for own in events.values() for event in own]:
            place = int(event.request_id)
            if event.first == len(self._said[place].token_ids):
                self._said[place] = Said(self._said[place].token_ids + event.token_ids)

    def _shares(self, step_ms: float, sequences: int, draft_tokens: int) -> dict[str, Any]:
        """The bare graphs of such a step, over the inputs of the last one, and what is not theirs."""
        buffers, graphs = self._parts.buffers, self._parts.graphs
        rows = size_for(buffers.most_rows, sequences * (1 + draft_tokens))
        draws = size_for(buffers.most_draws, sequences * (1 + draft_tokens))
        graph_ms = {
            "walk": _median_ms(lambda: graphs.walk(rows)),
            "draw": _median_ms(lambda: graphs.draw(draws)),
        }
        if draft_tokens:  # two tokens of each sequence are followed, one is drawn
            drawn = size_for(buffers.most_draws, sequences)
            graph_ms["follow"] = _median_ms(lambda: graphs.walk(rows, mtp=True))
            graph_ms["draw drafts"] = _median_ms(lambda: graphs.draw(drawn))
        host_share = 1 - sum(graph_ms.values()) / step_ms
        return {"graph_ms": graph_ms, "host_share": round(host_share, 3)}


def prefill(parts: Fp8Parts, limits: SchedulerLimits, prompts: int, tokens: int) -> dict[str, Any]:
    """Prompts of `tokens`, one after the other in chunks, to their first token."""
    engine = make_engine(parts, limits)
    sampling = replace(GREEDY, max_tokens=1)
    for i, prompt in enumerate(_prompts(parts, prompts, tokens)):
        assert engine.submit("bench", str(i), prompt, [], sampling) is None
    start_s = time.perf_counter()
    while engine.has_work:
        engine.step()
    seconds = time.perf_counter() - start_s
    return {
        "prompts": prompts,
        "tokens": tokens,
        "chunk_tokens": limits.chunk_tokens,
        "tokens_per_s": round(prompts * tokens / seconds, 1),
        "steps": engine.counters.steps,
    }


def chunk_ms(parts: Fp8Parts) -> dict[str, dict[str, float]]:
    """A chunk of one sequence at the start of its prompt, both ways."""
    buffers, graphs = parts.buffers, parts.graphs
    found = {}
    for tokens in (64, 256, 512, 768, 1024, 2048, 4096):
        span = RowSpan(first_row=0, num_rows=tokens, first_position=0, seat=0)
        ways = {}
        if tokens <= buffers.most_rows:
            ways["rows"] = _median_ms(partial(graphs.walk, tokens), replays=5)
        if tokens <= buffers.most_many:
            ways["chunk"] = _median_ms(partial(graphs.walk_many, [span]), replays=5)
        found[str(tokens)] = ways
    return found


def publish_past(engine: Engine, prompt: list[int]) -> None:
    """As if somebody had computed all of the prompt's full pages."""
    assert engine._prefixes is not None
    pool = engine._pool
    past = LiveSequence(
        request_id="past",
        owner="bench",
        tokens=prompt,
        num_prompt=len(prompt),
        sampling=GREEDY,
        eos_ids=(),
        max_context=len(prompt),
        pages=pool.take((len(prompt) - 1) // PAGE_TOKENS),
    )
    engine._prefixes.publish(past, len(prompt) - 1)
    pool.give_back(past.pages)
    pool.unclean()


def _prompts(parts: Fp8Parts, count: int, tokens: int) -> list[list[int]]:
    rng, vocab = Random(count), parts.config.vocab_size
    return [[rng.randrange(2, vocab) for _ in range(tokens)] for _ in range(count)]


def _median_ms(replay: Callable[[], None], replays: int = 15) -> float:
    times = []
    for _ in range(WARM_UP + replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return round(float(statistics.median(times[WARM_UP:])), 3)
