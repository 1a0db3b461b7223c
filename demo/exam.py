"""Held-out questions of every task, asked and judged.

The same seed asks the same questions. Knows nothing of the model behind the client and of how outcomes are
shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from demo import about, arithmetic, needle, sql, tool_calls
from demo.client import Client, EndpointError, Reply, calls_as_text
from demo.evaluation import ANSWER, CALL, ROUND_TRIP, Outcome, clipped
from demo.sample import Fact, Sample, Split, Task
from demo.tool_calls import ToolCall, parse_calls

HELD_OUT: Split = "held_out"
INDEX_TOPK = 64
NEEDLE_TOKENS = tuple(INDEX_TOPK * times for times in (1, 2, 4, 8, 16, 32))
NEEDLE_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
NEEDLE_CELLS = [(tokens, depth) for tokens in NEEDLE_TOKENS for depth in NEEDLE_DEPTHS]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A sample and its judge. facts: beside the sample's own. report: of a tool call, what to ask next."""

    task: Task
    sample: Sample
    facts: Mapping[str, Fact] = field(default_factory=dict)
    report: Callable[[ToolCall], Sample] | None = None


def questions(seed: int, samples: int) -> list[Question]:
    """`samples` of every task; arithmetic twice, needles shared out over their cells."""
    return [
        *_plain(sql.TASK, seed, samples),
        *_arithmetic(seed, samples),
        *_tool_calls(seed, samples),
        *_needles(seed, max(1, round(samples / len(NEEDLE_CELLS)))),
        *_plain(about.TASK, seed, samples),
    ]


async def ask_all(
    client: Client,
    asked: Sequence[Question],
    *,
    concurrency: int,
    max_tokens: int,
    done: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """The outcomes in the order of the questions; `done` is called after each. Raises EndpointError."""
    gate = asyncio.Semaphore(concurrency)

    async def one(question: Question) -> list[Outcome]:
        async with gate:
            outcomes = await _asked(client, question, max_tokens)
        done()
        return outcomes

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(question)) for question in asked]
    except ExceptionGroup as failures:
        failed, other = failures.split(EndpointError)
        if other is not None or failed is None:
            raise
        raise failed.exceptions[0] from None
    return [outcome for task in tasks for outcome in task.result()]


def _plain(task: Task, seed: int, count: int) -> Iterator[Question]:
    rng = _rng(task, seed)
    return (Question(task=task, sample=task.draw(rng, HELD_OUT)) for _ in range(count))


def _arithmetic(seed: int, count: int) -> Iterator[Question]:
    """The same problems with thinking and without."""
    for thinking in (True, False):
        rng = _rng(arithmetic.TASK, seed)
        for _ in range(count):
            sample = arithmetic.draw_form(rng, HELD_OUT, thinking=thinking)
            yield Question(task=arithmetic.TASK, sample=sample)


def _tool_calls(seed: int, count: int) -> Iterator[Question]:
    rng = _rng(tool_calls.TASK, seed)
    for _ in range(count):
        sample, report = tool_calls.round_trip(rng, HELD_OUT)
        yield Question(task=tool_calls.TASK, sample=sample, report=report)


def _needles(seed: int, per_cell: int) -> Iterator[Question]:
    rng = _rng(needle.TASK, seed)
    for tokens, depth in NEEDLE_CELLS:
        for _ in range(per_cell):
            sample = needle.draw_at(rng, HELD_OUT, tokens=tokens, depth=depth)
            yield Question(task=needle.TASK, sample=sample, facts={"tokens": tokens, "depth": depth})


def _rng(task: Task, seed: int) -> Random:
    return Random(f"evaluate {task.name} {seed}")


async def _asked(client: Client, question: Question, max_tokens: int) -> list[Outcome]:
    if question.report is not None:
        return await _round_trip(client, question, question.report, max_tokens)
    reply = await _reply(client, question.sample, max_tokens)
    return [_judged(question, question.sample, reply, question.facts)]


async def _round_trip(
    client: Client, question: Question, report: Callable[[ToolCall], Sample], max_tokens: int
) -> list[Outcome]:
    """The call; the report of the expected call's result; both in a row, with the call that was made."""
    sample = question.sample
    reply = await _reply(client, sample, max_tokens)
    call = _judged(question, sample, reply, {"part": CALL})
    expected = report(ToolCall(name=sample.expected["name"], arguments=sample.expected["arguments"]))
    answer = _judged(question, expected, await _reply(client, expected, max_tokens), {"part": ANSWER})
    if call.is_right:
        (made,) = parse_calls(reply.text) or ()
        sample = report(made)
        reply = await _reply(client, sample, max_tokens)
    return [call, answer, _judged(question, sample, reply, {"part": ROUND_TRIP})]


async def _reply(client: Client, sample: Sample, max_tokens: int) -> Reply:
    return await client.ask(
        sample.messages, tools=sample.tools, thinking=sample.thinking, max_tokens=max_tokens
    )


def _judged(question: Question, sample: Sample, reply: Reply, facts: Mapping[str, Fact]) -> Outcome:
    """Right is only what the model wrote well and the endpoint understood: neither makes up for the other."""
    return Outcome(
        task=sample.task,
        is_right=all(question.task.is_right(sample, text) for text in {reply.text, reply.written}),
        thinking=sample.thinking,
        facts={**sample.facts, **facts},
        question=clipped(next(m["content"] for m in reversed(sample.messages) if m["role"] == "user")),
        text=clipped(reply.written),
        wanted=clipped(_written(sample)),
        prompt_tokens=reply.prompt_tokens,
        tokens=reply.tokens,
        finish_reason=reply.finish_reason,
    )


def _written(sample: Sample) -> str:
    """The answer that training would show, as text."""
    calls = sample.answer.get("tool_calls")
    return calls_as_text("", calls) if calls else str(sample.answer["content"])
