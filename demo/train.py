"""`python -m demo.train`: train the embedded model, or a run to compare it with.

Writes curves and final figures to RESULTS, resumable state to STATE and, with --export, a checkpoint. Knows
nothing of the arithmetic.
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file

from demo.attention import Attention
from demo.corpus import Source, draw, generator
from demo.design import VOCAB_SIZE, demo_config_json
from demo.export import write_checkpoint, write_record
from demo.measure import ROWS, Examiner, changed_share
from demo.network import Network
from demo.parameters import make_parameters
from demo.precision import Arithmetic, Precision
from demo.settings import Settings
from demo.trainer import Trainer
from demo.vocabulary import vocabulary_text, write_vocabulary
from model.config import ModelConfig
from model.tiny import config_json, presets

CURVES = (
    *("step", "tokens", "phase", "loss", "answer_loss", "mtp_loss", "index_kl", "load_max_over_mean"),
    *("load_mean_max_over_mean", "lr", "tokens_per_s", "seconds"),
)
LOG_STEPS = 20
PLACES = ("--results", "--export", "--state")
PROBES = 12  # times that routing is compared with what it was
VOCABULARY_SAMPLES = {"demo": 6000, "test": 200}


@dataclass(slots=True)
class Run:
    """A trainer with its clock and its files."""

    trainer: Trainer
    examiner: Examiner
    curves: Any
    file: TextIO
    seconds: float = 0.0
    routing: list[dict[str, float]] = field(default_factory=list)
    last_choices: Any = None

    def log(self, since_s: float, steps: int) -> float:
        """Write a row of the curves; returns the loss."""
        trainer, settings = self.trainer, self.trainer.settings
        means = trainer.read()
        elapsed = time.monotonic() - since_s
        self.seconds += elapsed
        tokens = settings.rows * settings.length
        step = trainer.step
        losses = (means.loss, means.answer_loss, means.mtp_loss, means.index_kl)
        values = (*losses, means.worst_load, means.mean_load)
        self.curves.writerow(
            [
                *(step, step * tokens, settings.phase(step - 1)),
                *(f"{value:.5f}" for value in values),
                *(f"{settings.lr(step - 1):.6f}", round(steps * tokens / elapsed), f"{self.seconds:.1f}"),
            ]
        )
        self.file.flush()
        return means.loss

    def probe(self) -> None:
        """Compare the routing of fixed batches with the last time."""
        phase = self.trainer.settings.phase(self.trainer.step - 1)
        choices = self.examiner.choices(self.trainer.network, "sparse" if phase == "sparse" else "dense")
        if self.last_choices is not None:
            share = changed_share(self.last_choices, choices)
            self.routing.append({"step": self.trainer.step, "share": share})
        self.last_choices = choices


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
        seconds, routing = _resume(trainer, state)
    except ForeignState as error:  # before a file is touched
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    vocabulary = results / f"vocabulary-{name}"
    results.mkdir(parents=True, exist_ok=True)
    numbers = range(VOCABULARY_SAMPLES[shape])
    texts = [vocabulary_text(draw(generator(0, "vocabulary", number), "train")) for number in numbers]
    write_vocabulary(vocabulary, texts, VOCAB_SIZE)
    with _run(trainer, vocabulary, results, exam_batches) as run:
        run.seconds, run.routing = seconds, routing
        source = Source(directory=vocabulary, seed=seed, split="train", rows=rows, length=length)
        _loop(run, source, workers, state, save_steps)
        attention: Attention = "sparse" if sparse else "dense"
        final = run.examiner.examine(trainer.network, attention)
        final["tokens_right"] = _tokens_right(run, attention)
    _write_figures(results, run, final)
    if export is not None:
        _export(export, run, vocabulary)


class ForeignState(ValueError):  # noqa: N818 - named for what happened, as the rest of the tree
    """The state to resume from is that of a run with other settings."""


def _tokens_right(run: Run, attention: Attention) -> dict[str, float]:
    """Share of answer tokens predicted as trained, and in the plain fp32 that serves.

    Two figures, because a compiled or rounded product that computes something of its own trains as well as
    any other: only the weights, read elsewhere, tell (docs/log.md).
    """
    network = run.trainer.network
    plain = Network(
        network.config, network.parameters, Arithmetic(precision="fp32"), run.trainer.settings.length
    )
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
    write_record(partial, command=_command(), seed=settings.seed)
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
    return Network(config, parameters, arithmetic, settings.length)


@contextmanager
def _run(trainer: Trainer, vocabulary: Path, results: Path, exam_batches: int) -> Iterator[Run]:
    settings = trainer.settings
    rows = min(ROWS, settings.rows)
    examiner = Examiner(vocabulary, seed=7, length=settings.length, batches=exam_batches, rows=rows)
    path = results / f"run-{settings.name}.csv"
    kept = _rows_until(path, trainer.step)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CURVES)
        writer.writerows(kept)
        yield Run(trainer=trainer, examiner=examiner, curves=writer, file=file)


def _rows_until(path: Path, step: int) -> list[list[str]]:
    """What a resumed run has logged so far; nothing for a fresh one."""
    if step == 0 or not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]


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
                    done = f"{step}/{settings.steps} {phase} loss {loss:.3f} {run.seconds:.0f} s"
                    typer.echo(f"{settings.name} {done}", err=True)
                if step * PROBES // settings.steps != (step - LOG_STEPS) * PROBES // settings.steps:
                    run.probe()
                if state is not None and (step == settings.steps or step % save_steps < LOG_STEPS):
                    _save(run, state)
                since_s, since_step = time.monotonic(), step


def _save(run: Run, state: Path) -> None:
    """State of the run; the JSON is written last, so a save that was cut short is not resumed from."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "state.json").unlink(missing_ok=True)
    save_file(
        {name: value.contiguous() for name, value in run.trainer.state().items()}, state / "state.safetensors"
    )
    saved = {
        "step": run.trainer.step,
        "seconds": run.seconds,
        "routing": run.routing,
        "settings": asdict(run.trainer.settings),
    }
    (state / "state.json").write_text(json.dumps(saved) + "\n", encoding="utf-8")


def _resume(trainer: Trainer, state: Path | None) -> tuple[float, list[dict[str, float]]]:
    """Seconds trained and routing compared so far."""
    if state is None or not (state / "state.json").exists():
        return 0.0, []
    saved = json.loads((state / "state.json").read_text(encoding="utf-8"))
    wanted = asdict(trainer.settings)
    if saved["settings"] != wanted:
        different = sorted(name for name in wanted if saved["settings"].get(name) != wanted[name])
        raise ForeignState(f"{state} holds another run ({', '.join(different)} differ): give another --state")
    trainer.restore(load_file(state / "state.safetensors"), saved["step"])
    return saved["seconds"], saved["routing"]


def _write_figures(results: Path, run: Run, final: dict[str, Any]) -> None:
    settings = run.trainer.settings
    with (results / f"run-{settings.name}.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    is_cuda = torch.cuda.is_available()
    figures = {
        "name": settings.name,
        "seed": settings.seed,
        "command": _command(),
        "steps": settings.steps,
        "tokens": settings.steps * settings.rows * settings.length,
        "seconds": round(run.seconds, 1),
        "device": torch.cuda.get_device_name() if is_cuda else "CPU",
        "settings": asdict(settings),
        "final": {
            "loss": float(last["loss"]),
            "mtp_loss": float(last["mtp_loss"]),
            "routing_change": run.routing,
        }
        | final,
    }
    path = results / f"run-{settings.name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _command() -> str:
    """What was asked for, but for where on a machine it was put."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in PLACES:
            next(words, None)
        else:
            kept.append(word)
    return "python -m demo.train " + shlex.join(kept)


if __name__ == "__main__":
    typer.run(train)
