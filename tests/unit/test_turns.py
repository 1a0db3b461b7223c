"""Turns: whoever orders much delays nobody else by more than one order."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.matchers import Made, MatcherDesk
from actors.messages import Terms
from actors.turns import Turns
from ingress.compiler import MAX_WAITING_IN_LINE, CompileLimits, GrammarCompiler
from ingress.desk import OrderDesk
from ingress.engine_client import Call
from ingress.errors import DeadlineExceeded, Overloaded, RequestError
from ingress.generation import Generation
from ingress.order import Order
from ingress.tokens import Tokenizer
from model.grammar import Grammars
from model.sampling import Sampling
from tests.unit.test_generation import Leaving

PATIENCE_S = 30.0
REGEX = {"model": "m", "prompt": "hi", "structured_outputs": {"regex": "[a-z]+"}}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.booleans()), max_size=40))
def test_a_line_is_served_oldest_first_and_after_one_of_each_other(
    steps: list[tuple[str, bool, bool]],
) -> None:
    turns: Turns[tuple[str, int]] = Turns()
    lines: dict[str, list[int]] = {line: [] for line in "abc"}
    passed_over = dict.fromkeys("abc", 0)
    for number, (line, is_withdrawn, is_served) in enumerate(steps):
        turns.put(line, number, (line, number))
        lines[line].append(number)
        if is_withdrawn:
            turns.discard(lines[line].pop(0))
        if is_served and (served := turns.next()) is not None:
            assert lines[served[0]].pop(0) == served[1]
            for other in lines:
                is_passed_over = other != served[0] and lines[other]
                passed_over[other] = passed_over[other] + 1 if is_passed_over else 0
            assert max(passed_over.values()) <= 2
    assert {line: turns.num_in(line) for line in lines} == {line: len(held) for line, held in lines.items()}
    assert len(turns) == sum(map(len, lines.values()))


@given(st.integers(1, 30), st.integers(1, 5))
def test_a_flood_in_one_line_delays_another_by_one(flood: int, others: int) -> None:
    turns: Turns[str] = Turns()
    for number in range(flood):
        turns.put("flood", number, "flood")
    for number in range(others):
        turns.put(f"other {number}", f"other {number}", f"other {number}")
    served = [turns.next() for _ in range(others + 1)]
    assert served == ["flood", *(f"other {number}" for number in range(others))]


class Gated(Grammars):
    """Compiles nothing before it may; a grammar of no use breaks it as no GrammarError would."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, vocab_size=272, end_ids=[1])
        self.gate = threading.Event()
        self.compiled: list[str] = []

    def compile(self, grammar: str):
        assert self.gate.wait(PATIENCE_S)
        self.compiled.append(grammar)
        if "broken" in grammar:
            raise RuntimeError("a fault of the library")
        return super().compile(grammar)


def text(word: str) -> str:
    return f'start: "{word}"\n'


def made_by(desk: MatcherDesk, count: int, ready: threading.Semaphore) -> dict[object, Made]:
    made: dict[object, Made] = {}
    while len(made) < count:
        assert ready.acquire(timeout=PATIENCE_S)
        made.update(desk.take())
    return made


def test_the_desk_makes_matchers_of_each_tenant_in_turn_and_none_that_was_withdrawn(
    tokenizer: Tokenizer,
) -> None:
    grammars, ready = Gated(tokenizer.directory), threading.Semaphore(0)
    desk = MatcherDesk(grammars, announce=ready.release)
    for number in range(9):
        desk.order(number, Sampling(max_tokens=1, grammar=text(f"a{number}")), [], "a")
    desk.order("b", Sampling(max_tokens=1, grammar=text("b")), [], "b")
    desk.withdraw(8)
    grammars.gate.set()
    assert set(made_by(desk, 9, ready)) == {*range(8), "b"}
    assert text("b") in grammars.compiled[:3]
    assert text("a8") not in grammars.compiled
    desk.close()


def test_what_breaks_the_library_ends_its_own_order_only(tokenizer: Tokenizer) -> None:
    grammars, ready = Gated(tokenizer.directory), threading.Semaphore(0)
    grammars.gate.set()
    desk = MatcherDesk(grammars, announce=ready.release)
    desk.order(1, Sampling(max_tokens=1, grammar=text("broken")), [])
    desk.order(2, Sampling(max_tokens=1, grammar=text("whole")), [])
    made = made_by(desk, 2, ready)
    assert isinstance(made[1], RuntimeError)
    assert not isinstance(made[2], Exception)
    desk.close()


class Slow(GrammarCompiler):
    """Its helper takes until the gate opens."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, CompileLimits())
        self.gate = threading.Event()
        self.tried: list[str] = []

    def _try(self, grammar: str) -> str:
        assert self.gate.wait(PATIENCE_S)
        self.tried.append(grammar)
        return ""


def order_of(tokenizer: Tokenizer) -> Order:
    desk = OrderDesk(tokenizer=tokenizer, model_name="m", context_tokens=4096)
    return desk.completion(json.dumps(REGEX).encode())


@pytest.mark.parametrize(
    ("terms", "deadline_s", "error"),
    [(Terms(max_wait_s=0.05), None, Overloaded), (Terms(is_batch=True), 0.05, DeadlineExceeded)],
)
def test_a_grammar_that_waits_to_be_compiled_keeps_to_the_time_of_its_request(
    tokenizer: Tokenizer, terms: Terms, deadline_s: float | None, error: type[RequestError]
) -> None:
    compiler = Slow(tokenizer.directory)

    async def scenario() -> None:
        now_s = asyncio.get_running_loop().time()
        call = Call(terms=terms, deadline_s=None if deadline_s is None else now_s + deadline_s)
        engine = Leaving()
        generation = Generation(engine, order_of(tokenizer), tokenizer, "a", call, compiler)  # type: ignore[arg-type]
        with pytest.raises(error):
            async with asyncio.timeout(PATIENCE_S), generation:
                raise AssertionError("it was let in")
        assert engine.num_asked == 0
        compiler.gate.set()
        await compiler.check("next", None)

    asyncio.run(scenario())
    assert compiler.tried[-1] == "next", "who gave up does not hold the turn"
    compiler.close()


def test_grammars_of_one_tenant_neither_delay_nor_shut_out_another(tokenizer: Tokenizer) -> None:
    compiler = Slow(tokenizer.directory)

    async def scenario() -> None:
        flood = [
            asyncio.create_task(compiler.check(f"a{number}", None, "a"))
            for number in range(MAX_WAITING_IN_LINE + 2)
        ]
        await asyncio.sleep(0)
        other = asyncio.create_task(compiler.check("b", None, "b"))
        left = asyncio.create_task(compiler.check("c", None, "c"))
        await asyncio.sleep(0)
        left.cancel()
        compiler.gate.set()
        async with asyncio.timeout(PATIENCE_S):
            await other
            ended = await asyncio.gather(*flood, left, return_exceptions=True)
        assert [type(one) for one in ended if one] == [Overloaded, asyncio.CancelledError]

    asyncio.run(scenario())
    assert compiler.tried.index("b") <= 2
    assert "c" not in compiler.tried
    compiler.close()
