"""Decode beside llama.cpp, on one random V3.2 model.

    SHOAL_LLAMA_PYTHON=.../bin/python python -m bench.beside_llama

First whether it computes the same model: every logit of a prompt longer than index_topk beside transformers',
and greedy tokens beside Shoal's. Then Shoal's local engine, in this process on one thread, and llama.cpp with
each kind of weights and each number of threads take turns on the same prompts. Knows nothing of HTTP and of
Ray.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import torch
import typer
from rich.console import Console

from actors.engine import Engine
from bench.hf import load_model
from bench.llama_process import LLAMA, Llama, llama_of
from bench.local import local_engine
from bench.machine import command, cpu_times, describe, foreign_cores
from bench.pipe import PipeError
from bench.report import stdout_console
from bench.step import preset_directory
from bench.timing import Answer, Prompt, common_prefix, make_prompts
from kernels.crew import helper
from model.cache import PAGE_TOKENS
from model.checkpoint import Checkpoint
from model.sampling import Sampling

SHOAL = "Shoal local"
PRESET = "peers"
RESULTS = Path(__file__).with_name("results") / "beside_llama.json"
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCHES = (1, 16)
MOST_APART = 1e-3  # of logits whose standard deviation is 2, where both compute in fp32
WARM_TOKENS = 4

Generate = Callable[..., list[Answer]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Of llama.cpp with fp32 weights, rounding nothing. most_apart: of any logit from transformers'.

    same_choice: tokens whose largest logit is the same. same_tokens: greedy ones, before the first that
    differs from Shoal's, of `tokens`.
    """

    prompt_tokens: int
    index_topk: int
    most_apart: float
    deviation: float
    same_choice: int
    same_tokens: int
    tokens: int

    @property
    def holds(self) -> bool:
        return self.most_apart < MOST_APART and self.same_tokens == self.tokens

    def __str__(self) -> str:
        return (
            f"of a prompt of {self.prompt_tokens} tokens (index_topk {self.index_topk}) no logit of "
            f"llama.cpp (fp32) is more than {self.most_apart:.1e} from transformers' (their deviation is "
            f"{self.deviation:.1f}), the largest is the same at {self.same_choice}; "
            f"{self.same_tokens} of {self.tokens} greedy tokens are Shoal's"
        )


@dataclass(kw_only=True, slots=True)
class Measured:
    """One system at one batch. rates: decoded tokens/s by round; foreign_cores: others' work meanwhile."""

    system: str
    batch: int
    rates: list[float] = field(default_factory=list)
    foreign_cores: list[float] = field(default_factory=list)


def main(
    rounds: int = 5,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    threads: Annotated[
        list[int] | None, typer.Option(help="Of llama.cpp; repeatable. Default: 1 and 2.")
    ] = None,
    with_helper: Annotated[bool, typer.Option("--helper", help="Shoal with a second thread.")] = False,
    keep: Annotated[bool, typer.Option("--write", help=f"bench/results/{RESULTS.name}.")] = False,
) -> None:
    """Compare, measure, and print the table as docs/performance.md has it."""
    notes, load_before = Console(stderr=True, highlight=False), psutil.getloadavg()[0]
    torch.set_num_threads(1)
    if with_helper:
        helper().start()
    directory = preset_directory(PRESET)
    with ExitStack() as stack:
        try:
            llamas = {name: stack.enter_context(llama_of(directory, kind)) for name, kind in WEIGHTS.items()}
            agreement = agree(directory, llamas["fp32"], new_tokens)
            notes.print(str(agreement), markup=False)
            if not agreement.holds:
                raise typer.BadParameter(f"llama.cpp computes another model: {agreement}")
            own = f"{SHOAL}, {'2 threads' if with_helper else '1 thread'}"
            systems = {own: shoal(directory, prompt_tokens + new_tokens)} | llamas_of(
                llamas, threads or [1, 2]
            )
            measured = measure(systems, rounds, prompt_tokens, new_tokens, notes)
        except PipeError as error:
            raise typer.BadParameter(f"{error} (SHOAL_LLAMA_PYTHON names who has llama_cpp)") from None
    asked = command("bench.beside_llama")
    stdout_console().print(
        f"`{asked}` on {describe()['cpu']}, load {load_before:.1f} before it: {agreement}.\n\n"
        + table(measured),
        markup=False,
        soft_wrap=True,
    )
    if keep:
        run = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "command": asked,
            "machine": describe(),
            "load_before": round(load_before, 1),
            "agreement": asdict(agreement),
            "measured": [asdict(one) for one in measured],
        }
        RESULTS.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


def agree(directory: Path, llama: Llama, new_tokens: int) -> Agreement:
    """Both references are asked before llama.cpp is timed at all."""
    checkpoint = Checkpoint.open(directory)
    indexer = checkpoint.config.indexer
    assert indexer is not None, f"{PRESET} is a preset with an indexer"
    [prompt] = make_prompts("agreement", count=1, num_tokens=indexer.topk * 3 // 2)
    theirs = llama.logits(prompt)
    with torch.inference_mode():
        expected = load_model(directory, torch.float32)(torch.tensor([prompt])).logits[0]
    asked = {"new_tokens": new_tokens, "batch": 1}
    [ours] = shoal(directory, len(prompt) + new_tokens)([prompt], **asked)
    [greedy] = llama.generate(1, [prompt], exact=True, **asked)
    return Agreement(
        prompt_tokens=len(prompt),
        index_topk=indexer.topk,
        most_apart=float((theirs - expected).abs().max()),
        deviation=float(expected.std()),
        same_choice=int((theirs.argmax(-1) == expected.argmax(-1)).sum()),
        same_tokens=common_prefix(ours.token_ids, greedy.token_ids),
        tokens=new_tokens,
    )


def llamas_of(llamas: dict[str, Llama], threads: Sequence[int]) -> dict[str, Generate]:
    """By the name in the table."""
    return {
        f"{LLAMA} {name}, {count} thread{'s' * (count > 1)}": partial(llama.generate, count)
        for name, llama in llamas.items()
        for count in threads
    }


def shoal(directory: Path, context: int) -> Generate:
    """A local engine that is asked as llama.cpp is, all prompts of a batch at once."""
    engine = local_engine(
        Checkpoint.open(directory),
        context_tokens=-(-context // PAGE_TOKENS) * PAGE_TOKENS,
        num_sequences=max(BATCHES),
    )
    return partial(_generate, engine)


def measure(
    systems: dict[str, Generate], rounds: int, prompt_tokens: int, new_tokens: int, notes: Console
) -> list[Measured]:
    """Turn about; before the first turn each has answered once at each batch."""
    found = {(name, batch): Measured(system=name, batch=batch) for batch in BATCHES for name in systems}
    for turn in range(-1, rounds):
        for (name, batch), one in found.items():
            prompts = make_prompts(f"{turn}:{batch}", count=batch, num_tokens=prompt_tokens)
            before = cpu_times()
            answers = systems[name](prompts, new_tokens=new_tokens if turn >= 0 else WARM_TOKENS, batch=batch)
            if turn >= 0:
                one.rates.append(decode_rate(answers))
                one.foreign_cores.append(round(foreign_cores(before, cpu_times()), 2))
                notes.print(f"round {turn + 1}: {name}, {batch} at once: {one.rates[-1]:.1f} tokens/s")
    return list(found.values())


def decode_rate(answers: Sequence[Answer]) -> float:
    """Tokens/s while all of them decode: from the last first token to the first last one."""
    begin_s = max(answer.arrivals_s[0] for answer in answers)
    end_s = min(answer.arrivals_s[-1] for answer in answers)
    if end_s <= begin_s:
        raise ValueError("no moment at which all decode: ask for more new tokens")
    return sum(begin_s < at_s <= end_s for answer in answers for at_s in answer.arrivals_s) / (
        end_s - begin_s
    )


def table(measured: Sequence[Measured]) -> str:
    """As Markdown: medians (least to most), and the ratio to the quickest llama.cpp of that batch."""
    best = {
        batch: max(
            median(one.rates) for one in measured if one.batch == batch and not one.system.startswith(SHOAL)
        )
        for batch in BATCHES
    }
    lines = [
        "| decoded tokens/s | 1 at once | to llama.cpp's best | 16 at once | to llama.cpp's best |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one.system for one in measured):
        cells = [cell for one in measured if one.system == name for cell in _cells(one, best[one.batch])]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def _cells(one: Measured, best: float) -> Iterator[str]:
    yield f"{median(one.rates):.1f} ({min(one.rates):.1f} to {max(one.rates):.1f})"
    yield f"{median(one.rates) / best:.2f}"


def _generate(engine: Engine, prompts: Sequence[Prompt], *, new_tokens: int, batch: int) -> list[Answer]:
    assert len(prompts) == batch, "one batch at a time"
    sampling = Sampling(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    sent_s = time.perf_counter()
    for number, prompt in enumerate(prompts):
        refused = engine.submit("bench", str(number), prompt, [], sampling)
        assert refused is None, f"prompt {number} was not taken: {refused}"
    token_ids: list[list[int]] = [[] for _ in prompts]
    arrivals_s: list[list[float]] = [[] for _ in prompts]
    while engine.has_work:
        for event in [event for own in engine.step().values() for event in own]:
            token_ids[int(event.request_id)] += event.token_ids
            arrivals_s[int(event.request_id)] += [time.perf_counter()] * len(event.token_ids)
    return [
        Answer(token_ids=tuple(ids), sent_s=sent_s, arrivals_s=tuple(times))
        for ids, times in zip(token_ids, arrivals_s, strict=True)
    ]


if __name__ == "__main__":
    typer.run(main)
