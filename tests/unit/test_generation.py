"""Choices while they are made: what has been said is never said again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from actors.messages import TokenEvent
from ingress.compiler import GrammarCompiler
from ingress.desk import OrderDesk
from ingress.engine_client import Call
from ingress.errors import Overloaded
from ingress.generation import Generation
from ingress.metrics import RequestMetrics
from ingress.stream import next_delta
from ingress.tokens import Tokenizer

BODY = {"model": "m", "prompt": "hello", "max_tokens": 6, "temperature": 0}


class Leaving:
    """An engine whose actors leave for good in the middle of a sequence."""

    wait_s = 1.0

    def __init__(self) -> None:
        self.num_asked = 0
        self.metrics = RequestMetrics()

    async def generate(self, name: str, *_: Any) -> AsyncGenerator[TokenEvent, None]:
        self.num_asked += 1
        for first in range(3):
            yield TokenEvent(request_id=name, first=first, token_ids=(97 + first,))
        raise Overloaded("no attention actor can be reached", retry_after_s=1.0)


def test_a_choice_that_has_spoken_and_can_go_on_nowhere_fails_and_repeats_nothing(
    tokenizer: Tokenizer,
) -> None:
    desk = OrderDesk(tokenizer=tokenizer, model_name="m", context_tokens=4096)
    order = desk.completion(json.dumps(BODY).encode())
    engine = Leaving()

    async def scenario() -> None:
        generation = Generation(
            engine, order, tokenizer, "cmpl-1", Call(), GrammarCompiler(tokenizer.directory)
        )  # type: ignore[arg-type]
        async with generation:
            for _ in range(3):
                await generation.next_delta()
            with pytest.raises(Overloaded):
                await generation.next_delta()

    asyncio.run(scenario())
    assert engine.num_asked == 1


class Impatient(Leaving):
    """An engine whose own time is up, whatever the client's is."""

    async def generate(self, name: str, *_: Any) -> AsyncGenerator[TokenEvent, None]:
        yield TokenEvent(request_id=name, first=0, token_ids=(97,))
        raise TimeoutError("of a socket")


def test_a_time_that_is_up_elsewhere_is_a_failure_and_no_silence(tokenizer: Tokenizer) -> None:
    """Taken for a client that waits, it would keep a stream open for ever."""
    desk = OrderDesk(tokenizer=tokenizer, model_name="m", context_tokens=4096)
    order = desk.completion(json.dumps(BODY).encode())

    async def scenario() -> None:
        generation = Generation(
            Impatient(), order, tokenizer, "cmpl-1", Call(), GrammarCompiler(tokenizer.directory)
        )  # type: ignore[arg-type]
        async with generation:
            assert await next_delta(generation, 60.0) is not None
            with pytest.raises(TimeoutError, match="of a socket"):
                await next_delta(generation, 60.0)
            assert await next_delta(generation, 0.01) is None

    asyncio.run(scenario())
