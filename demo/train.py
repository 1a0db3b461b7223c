"""`python -m demo.train`: train the embedded model, or a run to compare it with.

Writes curves and final figures to RESULTS, resumable state to STATE and, with --export, a checkpoint. Knows
nothing of the arithmetic.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from demo.attention import Attention
from demo.corpus import Source, draw, generator
from demo.design import VOCAB_SIZE, demo_config_json
from demo.export import write_checkpoint, write_record
from demo.measure import ROWS, Examiner
from demo.network import Network
from demo.parameters import make_parameters
from demo.precision import Arithmetic, Precision
from demo.progress import (
    CURVES,
    ForeignState,
    History,
    Run,
    command_line,
    resume,
    rows_until,
    save,
    write_figures,
)
from demo.settings import Settings
from demo.trainer import Trainer
from demo.vocabulary import vocabulary_text, write_vocabulary
from model.config import ModelConfig
from model.tiny import config_json, presets

LOG_STEPS = 20
PROBES = 12  # times that the run is looked at on its way
VOCABULARY_SAMPLES = {"demo": 6000, "test": 200}


def train(
    name: Annotated[str, typer.Option(help="the run: results are run-NAME.csv and run-NAME.json")] = "main",
    steps: Annotated[
        int, typer.Option(min=1, help="optimiser steps, all phases together")
    ] = Settings().steps,
    rows: Annotated[int, typer.Option(min=1, help="sequences a step")] = Settings().rows,
    length: Annotated[int, typer.Option(min=64, help="tokens of a sequence")] = Settings().length,
    seed: Annotated[int, typer.Option(help="of the parameters and of the samples")] = 1,
    shape: Annotated[str, typer.Option(help="demo, or test: a model that trains in seconds")] = "demo",
    precision: Annotated[str, typer.Option(help="fp8, bf16 or fp32")] = "fp8",
    balanced: Annotated[bool, typer.Option(help="move the gates' biases against overload")] = True,
    sparse: Annotated[bool, typer.Option(help="the two DSA stages after dense training")] = True,
    results: Annotated[Path, typer.Option(help="where curves and figures go")] = Path("demo/results"),
    export: Annotated[Path | None, typer.Option(help="write a checkpoint into this directory")] = None,
    state: Annotated[Path | None, typer.Option(help="save here, and resume from here if it exists")] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="steps between two saves")] = 1000,
    workers: Annotated[int, typer.Option(min=0, help="processes that draw samples; 0: this one")] = 12,
    exam_batches: Annotated[int, typer.Option(min=1, help="held-out batches a task")] = 12,
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train the embedded model, or a run to compare it with."""
    if precision not in ("fp32", "bf16", "fp8"):
        raise typer.BadParameter(f"precision is {precision!r}: must be fp8, bf16 or fp32")
    if shape not in VOCABULARY_SAMPLES:
        raise typer.BadParameter(f"shape is {shape!r}: must be demo or test")
    chosen: Precision = precision  # type: ignore[assignment]
    settings = Settings(
        name=name,
        shape=shape,
        seed=seed,
        steps=steps,
        rows=rows,
        length=length,
        precision=chosen,
        balanced=balanced,
        sparse=sparse,
    )
    trainer = Trainer(settings, _network(settings, torch.device(device)))
    try:
        history = resume(trainer, state)
    except ForeignState as error:  # before a file is touched
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    vocabulary = results / f"vocabulary-{name}"
    results.mkdir(parents=True, exist_ok=True)
    numbers = range(VOCABULARY_SAMPLES[shape])
    texts = [vocabulary_text(draw(generator(0, "vocabulary", number), "train")) for number in numbers]
    write_vocabulary(vocabulary, texts, VOCAB_SIZE)
    with _run(trainer, history, vocabulary, results, exam_batches) as run:
        context = trainer.network.config.max_position_embeddings
        source = Source(
            directory=vocabulary, seed=seed, split="train", rows=rows, length=length, context=context
        )
        _loop(run, source, workers, state, save_steps)
        attention: Attention = "sparse" if sparse else "dense"
        final = run.examiner.examine(trainer.network, attention)
        final["tokens_right"] = _tokens_right(run, attention)
    write_figures(results, run, final)
    if export is not None:
        _export(export, run, vocabulary)


def _tokens_right(run: Run, attention: Attention) -> dict[str, float]:
    """Share of answer tokens predicted as trained, and in the plain fp32 that serves.

    Two figures, because a compiled or rounded product that computes something of its own trains as well as
    any other: only the weights, read elsewhere, tell (docs/log.md).
    """
    network = run.trainer.network
    plain = Network(network.config, network.parameters, Arithmetic(precision="fp32"))
    return {
        "as_trained": run.examiner.tokens_right(network, attention),
        "as_served": run.examiner.tokens_right(plain, attention),
    }


def _export(directory: Path, run: Run, vocabulary: Path) -> None:
    """The whole checkpoint beside its place, then into it: a run that is cut leaves what was there."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(vocabulary, partial)
    settings = run.trainer.settings
    write_checkpoint(partial, _config_json(settings.shape), run.trainer.network.parameters)
    write_record(partial, command=command_line(), seed=settings.seed)
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def _config_json(shape: str) -> dict[str, Any]:
    if shape == "demo":
        return demo_config_json()
    dtype = torch.bfloat16
    return config_json(presets()[shape], vocab_size=VOCAB_SIZE, indexer=True, fp8=True, dtype=dtype)


def _network(settings: Settings, device: torch.device) -> Network:
    config = ModelConfig.from_dict(_config_json(settings.shape))
    parameters = make_parameters(config, settings.seed, device)
    arithmetic = Arithmetic(precision=settings.precision, compiled=device.type == "cuda")
    return Network(config, parameters, arithmetic)


@contextmanager
def _run(
    trainer: Trainer, history: History, vocabulary: Path, results: Path, exam_batches: int
) -> Iterator[Run]:
    settings = trainer.settings
    rows = min(ROWS, settings.rows)
    examiner = Examiner(vocabulary, seed=7, length=settings.length, batches=exam_batches, rows=rows)
    path = results / f"run-{settings.name}.csv"
    kept = rows_until(path, trainer.step)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVES)
        writer.writerows(kept)
        yield Run(trainer=trainer, examiner=examiner, curves=writer, file=file, history=history)


def _loop(run: Run, source: Source, workers: int, state: Path | None, save_steps: int) -> None:
    """All steps that are left, with a progress bar."""
    trainer, settings = run.trainer, run.trainer.settings
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"training {settings.name}", total=settings.steps, completed=trainer.step)
        since_s, since_step = time.monotonic(), trainer.step
        for batch in source.batches(trainer.step, settings.steps - trainer.step, workers):
            trainer.train(batch)
            step = trainer.step
            if step % LOG_STEPS == 0 or step == settings.steps:
                loss = run.log(since_s, step - since_step)
                progress.update(task, completed=step, description=f"{settings.name} loss {loss:.3f}")
                if not sys.stderr.isatty() and step % (10 * LOG_STEPS) == 0:
                    phase = settings.phase(step - 1)
                    done = f"{step}/{settings.steps} {phase} loss {loss:.3f} {run.history.seconds:.0f} s"
                    typer.echo(f"{settings.name} {done}", err=True)
                if step * PROBES // settings.steps != (step - LOG_STEPS) * PROBES // settings.steps:
                    run.probe()
                if state is not None and (step == settings.steps or step % save_steps < LOG_STEPS):
                    save(run, state)
                since_s, since_step = time.monotonic(), step


if __name__ == "__main__":
    typer.run(train)
