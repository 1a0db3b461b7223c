"""Where the time of a step goes.

`python -m bench.step [--batch N]`: a local engine in this process, its stages marked from outside, under
torch.profiler. Every microsecond belongs to the innermost stage around it. Knows nothing of HTTP and of Ray.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

import actors.runner
import actors.step
import model.mla
from actors.engine import Engine
from actors.scheduler import Scheduler
from bench.local import local_engine
from bench.report import stdout_console
from bench.timing import make_prompts
from cluster.random_model import write_checkpoint
from cluster.spec import cache_directory
from kernels.crew import helper
from model.checkpoint import Checkpoint
from model.decoder import Decoder
from model.experts import ExpertShard, Mlp
from model.gate import Gate
from model.mla import Mla
from model.sampling import Sampling
from router.exchange import Exchange

MARK = "stage:"
STEP = "other Python"
PRESET = "bench"
WARM_STEPS = 3
# (where the name is looked up, the name, its stage)
STAGES: tuple[tuple[Any, str, str], ...] = (
    (Engine, "step", STEP),
    (Scheduler, "plan", "scheduler"),
    (actors.step, "build_batch", "batch"),
    (Mla, "attend", "attention"),
    (model.mla, "choose_slots", "indexer"),
    (model.mla, "keep_tokens", "norms and rotations"),
    (model.mla, "turn_heads", "norms and rotations"),
    (model.mla, "attend_pages", "keys"),
    (model.mla, "attend_slots", "keys"),
    (Decoder, "norm", "norms and rotations"),
    (Decoder, "logits", "head"),
    (Gate, "choose", "gate"),
    (Mlp, "forward", "dense and shared experts"),
    (ExpertShard, "forward", "routed experts"),
    (Exchange, "dispatch", "exchange"),
    (Exchange, "combine", "exchange"),
    (actors.runner, "sample", "sampler"),
)
PRODUCTS = frozenset(
    ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_grouped_mm", "aten::_int_mm")
)


@dataclass(slots=True)
class Share:
    """Seconds of one stage: products, other torch operators, and Python around them."""

    calls: int = 0
    products_s: float = 0.0
    operators_s: float = 0.0
    python_s: float = 0.0

    @property
    def total_s(self) -> float:
        return self.products_s + self.operators_s + self.python_s


@contextmanager
def marked() -> Iterator[None]:
    """Every stage inside a record_function, until the block ends."""
    patches = [
        mock.patch.object(owner, name, _marking(getattr(owner, name), stage)) for owner, name, stage in STAGES
    ]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def shares_of(events: Iterable[Any]) -> dict[str, Share]:
    """Exclusive times per stage, of a profile taken while marked."""
    shares: dict[str, Share] = defaultdict(Share)
    for event in events:
        stage = _stage_around(event)
        if stage is None:
            continue
        share, own_s = shares[stage], event.self_cpu_time_total / 1e6
        if event.name.startswith(MARK):
            share.calls += 1
            share.python_s += own_s
        elif event.name in PRODUCTS:
            share.products_s += own_s
        else:
            share.operators_s += own_s
    return dict(shares)


def main(
    preset: Annotated[str, typer.Option(help="Of `shoal make-tiny`, as bench or peers.")] = PRESET,
    checkpoint: Annotated[Path | None, typer.Option(help="Instead of a preset.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences at once.")] = 1,
    tokens: Annotated[int, typer.Option(help="Decode steps to profile.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
    with_helper: Annotated[bool, typer.Option("--helper", help="With a second thread.")] = False,
) -> None:
    """Print how prefill and decode divide."""
    torch.set_num_threads(1)
    if with_helper:
        helper().start()
    context_tokens = prompt_tokens + 2 * tokens + WARM_STEPS + 1
    opened = Checkpoint.open(checkpoint or preset_directory(preset))
    engine = local_engine(
        opened, context_tokens=context_tokens, num_sequences=batch, dtype=getattr(torch, dtype)
    )
    for prompt in make_prompts("warm", count=1, num_tokens=prompt_tokens):
        engine.submit("bench", "warm", prompt, [], Sampling(max_tokens=WARM_STEPS, temperature=0.0))
    _run(engine, steps=None)
    sampling = Sampling(max_tokens=context_tokens, temperature=0.0, ignore_eos=True)
    for number, prompt in enumerate(make_prompts("step", count=batch, num_tokens=prompt_tokens)):
        engine.submit("bench", str(number), prompt, [], sampling)
    console = stdout_console()
    with marked():
        steps, shares = _profiled(lambda: _prefill(engine, batch))
        console.print(_table(f"prefill of {batch} prompts of {prompt_tokens}, {steps} steps", steps, shares))
    _run(engine, steps=WARM_STEPS)
    start_s = time.perf_counter()
    _run(engine, steps=tokens)
    plain_ms = (time.perf_counter() - start_s) / tokens * 1e3
    with marked():
        steps, shares = _profiled(lambda: _run(engine, steps=tokens))
        title = f"decode of {batch} sequences, {plain_ms:.2f} ms a step without the profiler"
        console.print(_table(title, steps, shares))


def _profiled(work: Callable[[], int]) -> tuple[int, dict[str, Share]]:
    """(steps, shares) of `work`, which returns its steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps = work()
    return steps, shares_of(profiler.events() or [])


def _run(engine: Engine, *, steps: int | None) -> int:
    """Steps taken: `steps` of them, or as many as there is work for."""
    taken = 0
    while engine.has_work and taken != steps:
        engine.step()
        taken += 1
    return taken


def _prefill(engine: Engine, batch: int) -> int:
    """Steps until every sequence has a token."""
    steps, begun = 0, 0
    while begun < batch:
        events = [event for own in engine.step().values() for event in own]
        begun += sum(event.first == 0 for event in events)
        steps += 1
    return steps


def _marking(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + stage):
            return function(*args, **kwargs)

    return call


def _stage_around(event: Any) -> str | None:
    """The innermost stage that holds `event`; None outside of any step."""
    around = event
    while around is not None and not around.name.startswith(MARK):
        around = around.cpu_parent
    return None if around is None else str(around.name.removeprefix(MARK))


def _table(title: str, steps: int, shares: dict[str, Share]) -> Table:
    whole_s = sum(share.total_s for share in shares.values())
    table = Table("stage", title=f"{title}; profiled {whole_s / steps * 1e3:.2f} ms", title_justify="left")
    for heading in ("ms a step", "share", "matmul ms", "other torch ms", "Python ms", "calls a step"):
        table.add_column(heading, justify="right")
    for stage, share in sorted(shares.items(), key=lambda item: -item[1].total_s):
        per_step = (share.products_s, share.operators_s, share.python_s)
        table.add_row(
            stage,
            f"{share.total_s / steps * 1e3:.2f}",
            f"{100 * share.total_s / whole_s:.0f} %",
            *(f"{seconds / steps * 1e3:.2f}" for seconds in per_step),
            f"{share.calls / steps:.0f}",
        )
    return table


def preset_directory(preset: str = PRESET) -> Path:
    directory = cache_directory() / f"{preset}-1"
    if not (directory / "model.safetensors.index.json").exists():
        write_checkpoint(directory, preset, seed=0)
    return directory


if __name__ == "__main__":
    typer.run(main)
