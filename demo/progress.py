"""What a training run writes down: curves, figures and the state to resume from.

Knows nothing of how a step is made (demo/trainer.py) and of the command's options but its words.
"""

from __future__ import annotations

import csv
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file

from demo.measure import Examiner, changed_share
from demo.trainer import Trainer

CURVES = (
    *("step", "tokens", "phase", "loss", "answer_loss", "mtp_loss", "index_kl", "load_max_over_mean"),
    *("load_mean_max_over_mean", "lr", "tokens_per_s", "seconds"),
)
PLACES = ("--results", "--export", "--state")


@dataclass(slots=True)
class History:
    """seconds: trained so far. routing, learned: what each probe saw, by step, as the report reads it."""

    seconds: float = 0.0
    routing: list[dict[str, float]] = field(default_factory=list)
    learned: list[dict[str, float]] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """A trainer with its clock and its files."""

    trainer: Trainer
    examiner: Examiner
    curves: Any
    file: TextIO
    history: History
    last_choices: Any = None

    def log(self, since_s: float, steps: int) -> float:
        """Write a row of the curves; returns the loss."""
        trainer, settings = self.trainer, self.trainer.settings
        means = trainer.read()
        elapsed = time.monotonic() - since_s
        self.history.seconds += elapsed
        tokens = settings.rows * settings.length
        step = trainer.step
        losses = (means.loss, means.answer_loss, means.mtp_loss, means.index_kl)
        values = (*losses, means.worst_load, means.mean_load)
        self.curves.writerow(
            [
                *(step, step * tokens, settings.phase(step - 1)),
                *(f"{value:.5f}" for value in values),
                *(
                    f"{settings.lr(step - 1):.6f}",
                    round(steps * tokens / elapsed),
                    f"{self.history.seconds:.1f}",
                ),
            ]
        )
        self.file.flush()
        return means.loss

    def probe(self) -> None:
        """What is known by now of fixed batches, and how their routing changed since the last time."""
        step = self.trainer.step
        phase = self.trainer.settings.phase(step - 1)
        glance = self.examiner.glance(self.trainer.network, "sparse" if phase == "sparse" else "dense")
        if self.last_choices is not None:
            share = changed_share(self.last_choices, glance.choices_LNTK)
            self.history.routing.append({"step": step, "share": share})
        self.last_choices = glance.choices_LNTK
        self.history.learned.append({"step": step, **glance.exact})


class ForeignState(ValueError):  # noqa: N818 - named for what happened, as the rest of the tree
    """The state to resume from is that of a run with other settings."""


def rows_until(path: Path, step: int) -> list[list[str]]:
    """What a resumed run has logged so far; nothing for a fresh one."""
    if step == 0 or not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in list(csv.reader(file))[1:] if int(row[0]) <= step]


def save(run: Run, state: Path) -> None:
    """State of the run into the directory; a save that is cut short leaves the one before it."""
    state.mkdir(parents=True, exist_ok=True)
    trainer = run.trainer
    tensors = f"step-{trainer.step}.safetensors"
    save_file({name: value.contiguous() for name, value in trainer.state().items()}, state / tensors)
    saved = {
        "step": trainer.step,
        "tensors": tensors,
        "history": asdict(run.history),
        "settings": asdict(trainer.settings),
    }
    partial = state / "state.json.partial"
    partial.write_text(json.dumps(saved) + "\n", encoding="utf-8")
    partial.replace(state / "state.json")
    for old in state.glob("step-*.safetensors"):
        if old.name != tensors:
            old.unlink()


def resume(trainer: Trainer, state: Path | None) -> History:
    """Bring the trainer to where the saved run was; raises ForeignState."""
    if state is None or not (state / "state.json").exists():
        return History()
    saved = json.loads((state / "state.json").read_text(encoding="utf-8"))
    wanted = asdict(trainer.settings)
    if saved["settings"] != wanted:
        different = sorted(name for name in wanted if saved["settings"].get(name) != wanted[name])
        raise ForeignState(f"{state} holds another run ({', '.join(different)} differ): give another --state")
    trainer.restore(load_file(state / saved["tensors"]), saved["step"])
    return History(**saved["history"])


def write_figures(results: Path, run: Run, final: dict[str, Any]) -> None:
    settings = run.trainer.settings
    with (results / f"run-{settings.name}.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    is_cuda = torch.cuda.is_available()
    figures = {
        "name": settings.name,
        "seed": settings.seed,
        "command": command_line(),
        "steps": settings.steps,
        "tokens": settings.steps * settings.rows * settings.length,
        "seconds": round(run.history.seconds, 1),
        "device": torch.cuda.get_device_name() if is_cuda else "CPU",
        "settings": asdict(settings),
        "final": {
            "loss": float(last["loss"]),
            "mtp_loss": float(last["mtp_loss"]),
            "routing_change": run.history.routing,
            "learned": run.history.learned,
        }
        | final,
    }
    path = results / f"run-{settings.name}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def command_line() -> str:
    """What was asked for, but for where on a machine it was put."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        if word in PLACES:
            next(words, None)
        else:
            kept.append(word)
    return "python -m demo.train " + shlex.join(kept)
