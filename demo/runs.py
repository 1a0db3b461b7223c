"""What a training run leaves behind, as typed values.

demo/results/run-NAME.json and .csv, and the record of the checkpoint. Knows nothing of how a run is made
(demo/trainer.py) and of how it is shown (demo/report.py).

Errors: ResultError (demo/readers.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.evaluation import Score
from demo.readers import Fields, ResultError, read_columns, read_json

CURVES = (
    "step",
    "tokens",
    "loss",
    "answer_loss",
    "mtp_loss",
    "index_kl",
    "load_max_over_mean",
    "load_mean_max_over_mean",
    "lr",
    "tokens_per_s",
    "seconds",
)
Table = tuple[tuple[float, ...], ...]
Curves = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFigures:
    """Of one task's validation tokens, each predicted from the right ones before it."""

    loss: float
    accuracy: float
    mtp_acceptance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TopkPoint:
    """One checkpoint read with another index_topk; 0 attends to everything."""

    topk: int
    perplexity: float
    needle_accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Final:
    """Measured at the end of a run. Tables are [MoE layer][expert] shares of the expert choices.

    exact_match: answers predicted token by token, of held-out samples; familiar: of new ones of the trained
    kinds. routing_change: (step, share of the choices that differ from those of the step before in the list).
    learned: on the way, the step and by task the share of one batch's held-out answers known to the token.
    """

    loss: float
    mtp_loss: float
    validation_loss: float
    tasks: Mapping[str, TaskFigures]
    expert_load: Table
    experts_by_task: Mapping[str, Table]
    routing_change: tuple[tuple[int, float], ...]
    learned: tuple[Mapping[str, float], ...]
    topk_sweep: tuple[TopkPoint, ...]
    exact_match: Mapping[str, Score]
    exact_match_familiar: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training run. remark: what whoever compares it should know; written by hand."""

    name: str
    seed: int
    command: str
    steps: int
    tokens: int
    seconds: float
    device: str
    settings: Mapping[str, Any]
    final: Final
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """demo/checkpoint/training.json. sha256: by file name."""

    command: str
    seed: int
    parameters: int
    bytes: int
    sha256: Mapping[str, str]


def read_run(results: Path, name: str) -> Run:
    """results/run-NAME.json."""
    fields = read_json(results / f"run-{name}.json")
    return Run(
        name=fields.text("name"),
        seed=fields.count("seed"),
        command=fields.text("command"),
        steps=fields.count("steps"),
        tokens=fields.count("tokens"),
        seconds=fields.number("seconds"),
        device=fields.text("device"),
        settings=fields.under("settings").values,
        final=_final(fields.under("final")),
        remark=str(fields.values.get("remark", "")),
    )


def read_curves(results: Path, name: str) -> Curves:
    """results/run-NAME.csv, by column; an empty cell is NaN. Older runs have no answer_loss."""
    return read_columns(results / f"run-{name}.csv", CURVES, optional=("answer_loss",))


def read_record(checkpoint: Path) -> CheckpointRecord:
    """The training.json that lies beside the weights."""
    fields = read_json(checkpoint / "training.json")
    hashes = fields.under("sha256")
    return CheckpointRecord(
        command=fields.text("command"),
        seed=fields.count("seed"),
        parameters=fields.count("parameters"),
        bytes=fields.count("bytes"),
        sha256={name: hashes.text(name) for name in hashes.values},
    )


def _final(fields: Fields) -> Final:
    by_task = fields.under("experts_by_task")
    return Final(
        loss=fields.number("loss"),
        mtp_loss=fields.number("mtp_loss"),
        validation_loss=fields.number("validation_loss"),
        tasks={name: _task(task) for name, task in fields.each("validation_by_task")},
        expert_load=_load(fields),
        experts_by_task={name: by_task.table(name) for name in by_task.values},
        routing_change=tuple(_changes(fields)),
        learned=tuple(_learned(fields)),
        topk_sweep=tuple(_points(fields)),
        exact_match={name: _score(one) for name, one in fields.each("exact_match")},
        exact_match_familiar={name: _score(one) for name, one in fields.each("exact_match_familiar")},
    )


def _task(fields: Fields) -> TaskFigures:
    return TaskFigures(
        loss=fields.number("loss"),
        accuracy=fields.number("accuracy"),
        mtp_acceptance=fields.number("mtp_acceptance"),
    )


def _load(fields: Fields) -> Table:
    table = fields.table("expert_load")
    if any(not row or sum(row) <= 0 for row in table):
        raise ResultError(f"{fields.where} expert_load has a layer without load: write the file again")
    return table


def _changes(fields: Fields) -> Iterator[tuple[int, float]]:
    return ((one.count("step"), one.number("share")) for one in fields.items("routing_change"))


def _learned(fields: Fields) -> Iterator[Mapping[str, float]]:
    for one in fields.items("learned"):
        yield {name: one.number(name) for name in one.values}


def _points(fields: Fields) -> Iterator[TopkPoint]:
    for one in fields.items("topk_sweep"):
        yield TopkPoint(
            topk=one.count("topk"),
            perplexity=one.number("perplexity"),
            needle_accuracy=one.number("needle_accuracy"),
        )


def _score(fields: Fields) -> Score:
    right, of = fields.count("right"), fields.count("of")
    if not 0 <= right <= of:
        raise ResultError(f"{fields.where} right is {right} of {of}: must be between 0 and all")
    return Score(right=right, of=of)
