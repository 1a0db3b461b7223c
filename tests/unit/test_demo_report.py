"""The model report: every section from made-up results, and nothing where there are none."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from bench.plots import MAX_POINTS, windowed
from demo.evaluation import PARTS, Evaluation, Outcome, write_evaluation
from demo.readers import ResultError
from demo.report import SECTIONS, main, write_report
from demo.report_experts import relative, specialisation
from demo.report_page import Inputs, Section
from demo.runs import CURVES, read_curves, read_run

TASKS = ("sql", "arithmetic")
LAYERS, EXPERTS, TOPK = 3, 32, 64
MAX_BYTES = 60_000


def made_up_run(name: str, **final: Any) -> dict[str, Any]:
    even = [[1 / EXPERTS] * EXPERTS for _ in range(LAYERS)]
    return {
        "name": name,
        "seed": 1,
        "command": f"python -m demo.train --name {name}",
        "steps": 100,
        "tokens": 1_000_000,
        "seconds": 60.5,
        "device": "one GPU",
        "settings": {"batch": 8},
        "final": {
            "loss": 0.5,
            "mtp_loss": 0.7,
            "validation_loss": 0.6,
            "validation_by_task": {
                task: {"loss": 0.6, "accuracy": 0.9, "mtp_acceptance": 0.8} for task in TASKS
            },
            "expert_load": even,
            "load_max_over_mean": [1.0] * LAYERS,
            "experts_by_task": dict.fromkeys(TASKS, even),
            "routing_change": [{"step": 50, "share": 0.25}, {"step": 100, "share": 0.125}],
            "learned": [{"step": step, **dict.fromkeys(TASKS, step / 100)} for step in (50, 100)],
            "topk_sweep": [
                {"topk": 0, "perplexity": 1.8, "needle_accuracy": 1.0},
                {"topk": TOPK, "perplexity": 1.81, "needle_accuracy": 0.95},
                {"topk": 16, "perplexity": 2.5, "needle_accuracy": 0.25},
            ],
            "exact_match": {"sql": {"right": 9, "of": 10}},
            "exact_match_familiar": {"sql": {"right": 10, "of": 10}},
            **final,
        },
    }


def outcomes() -> list[Outcome]:
    """Everything right, but for one SQL query in ten and the needles at depth 1."""
    needles = [
        Outcome(task="needle", is_right=depth < 1, facts={"tokens": tokens, "depth": depth}, prompt_tokens=9)
        for tokens in (TOPK, 8 * TOPK)
        for depth in (0.0, 0.5, 1.0)
    ]
    return [
        *(
            Outcome(task="sql", is_right=rank > 0, facts={"joins": rank % 3}, question="|q`")
            for rank in range(10)
        ),
        *(
            Outcome(task="arithmetic", is_right=True, thinking=thinking, facts={"digits": digits})
            for thinking in (True, False)
            for digits in (1, 2)
        ),
        *(Outcome(task="tool", is_right=True, facts={"part": part}) for part in PARTS),
        *needles,
        Outcome(task="about", is_right=True),
    ]


def write_all(folder: Path) -> Inputs:
    inputs = Inputs(results=folder / "results", checkpoint=folder / "checkpoint")
    for directory in (inputs.results, inputs.checkpoint):
        directory.mkdir(parents=True)
    for name in ("main", "fp8", "bf16", "nobias", "dense"):
        write_run(inputs, name)
        write_curves(inputs, name)
    evaluation = Evaluation(
        command="python -m demo.evaluate", seed=1, samples=10, model="m", seconds=1.0, outcomes=outcomes()
    )
    write_evaluation(inputs.results / "evaluation.json", evaluation)
    weights = b"weights"
    (inputs.checkpoint / "model.safetensors").write_bytes(weights)
    (inputs.checkpoint / "config.json").write_text(json.dumps({"hidden_size": 256, "index_topk": TOPK}))
    record = {
        "command": "python -m demo.train",
        "seed": 1,
        "sha256": {"model.safetensors": hashlib.sha256(weights).hexdigest()},
        "parameters": 11_000_000,
        "bytes": len(weights),
    }
    (inputs.checkpoint / "training.json").write_text(json.dumps(record))
    return inputs


def write_run(inputs: Inputs, name: str, **final: Any) -> None:
    (inputs.results / f"run-{name}.json").write_text(json.dumps(made_up_run(name, **final)))


def write_curves(inputs: Inputs, name: str, columns: tuple[str, ...] = (*CURVES, "phase")) -> None:
    with (inputs.results / f"run-{name}.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, columns, extrasaction="ignore")
        rows.writeheader()
        for step in range(1, 6):
            row = dict.fromkeys(CURVES, 1 / step) | {"step": step, "tokens": 1000 * step, "phase": "sparse"}
            rows.writerow(row | {"index_kl": "" if step < 3 else 0.1})


def section_of(page: str, title: str) -> str:
    """The text of one section."""
    found = page.partition(f"## {title}\n")[2]
    assert found, f"no section {title}"
    return found.partition("\n## ")[0]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_all(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def page(inputs: Inputs) -> Path:
    """The report of everything, with its plots."""
    page = inputs.results.parent / "docs" / "model-report.md"
    write_report(inputs, page)
    return page


def filled(fill: Callable[[Section, Inputs], None], inputs: Inputs, folder: Path) -> Section:
    section = Section(title="one", figures=folder)
    fill(section, inputs)
    return section


def fill_of(title: str) -> Callable[[Section, Inputs], None]:
    return dict(SECTIONS)[title]


# The whole page


def test_every_section_stands_on_the_page_and_lacks_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert all(section_of(text, title).strip() for title, _ in SECTIONS)
    assert "Not measured" not in text
    assert "nan" not in text
    assert str(page.parent) not in text


def test_every_plot_on_the_page_exists_is_small_and_used(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    plots = sorted((page.parent / "figures").iterdir())
    assert len(plots) == text.count("](figures/")
    for plot in plots:
        assert f"](figures/{plot.name})" in text
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert plot.stat().st_size < MAX_BYTES


def test_goals_are_counted_and_said_to_be_reached_or_not(page: Path) -> None:
    goals = page.read_text(encoding="utf-8").partition("\n## ")[0]
    for row in (
        "| needle at 8 x index_topk (512 tokens) | >= 95 % | 66.7 % (2 of 3; 21-94) | **not reached** |",
        "| tool round trip | >= 95 % | 100.0 % (1 of 1; 21-100) | reached |",
        "| SQL execution accuracy | >= 90 % | 90.0 % (9 of 10; 60-98) | reached |",
        "| final loss in FP8 to that in BF16 | at most 1 % more | 0.5000 against 0.5000 (+0.00 %) | reached",
    ):
        assert row in goals


def test_wrong_answers_are_printed_as_they_came(page: Path) -> None:
    section = section_of(page.read_text(encoding="utf-8"), "SQL by joins")
    assert "**Bad:** 1 wrong answer" in section
    assert "    asked:  |q`\n" in section


def test_a_task_that_was_not_asked_is_said_to_be_so(inputs: Inputs, tmp_path: Path) -> None:
    other = replace(inputs, results=tmp_path)
    one = Outcome(task="about", is_right=True, finish_reason="length")
    write_evaluation(tmp_path / "evaluation.json", replace(inputs.evaluation(), outcomes=(one,)))
    for title in ("SQL by joins", "Arithmetic with and without thinking", "Tools"):
        section = filled(fill_of(title), other, tmp_path)
        assert section.lines[0].startswith("Not measured: the evaluation holds no answers")
        assert section.goals == []
    assert "**Bad:** 1 answers were cut off" in filled(fill_of("The evaluation"), other, tmp_path).lines[2]


def test_the_command_writes_the_page(inputs: Inputs, tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(main)
    empty = ["--results", str(tmp_path / "none"), "--checkpoint", str(tmp_path / "none")]
    out = tmp_path / "docs" / "page.md"
    result = CliRunner().invoke(command, [*empty, "--out", str(out)])
    assert result.exit_code == 0, result.output
    text = out.read_text(encoding="utf-8")
    assert "No goal has been measured yet." in text
    for title, _ in SECTIONS:
        (line,) = section_of(text, title).split("\n")[1:-1] or [""]
        assert line.startswith("Not measured: none/")
        assert line.endswith("is missing.")
    assert not (tmp_path / "docs" / "figures").exists()


# What is missing, broken or bad


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words; the whole page has shown that every plot can be drawn."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)


def test_a_broken_file_fails_with_its_name_and_key(tmp_path: Path) -> None:
    inputs = write_all(tmp_path)
    (inputs.checkpoint / "training.json").write_text("{")
    command = typer.Typer()
    command.command()(main)
    folders = ["--results", str(inputs.results), "--checkpoint", str(inputs.checkpoint)]
    result = CliRunner().invoke(command, [*folders, "--out", str(tmp_path / "page.md")])
    assert result.exit_code == 1
    assert "training.json: no JSON" in result.output
    assert not (tmp_path / "page.md").exists()


@pytest.mark.parametrize(
    ("final", "words"),
    [
        ({"loss": "low"}, "final: loss must be a number"),
        ({"expert_load": [[1, 2], [3]]}, "final: expert_load must be a list of equally long"),
        ({"expert_load": [[0, 0]]}, "expert_load has a layer without load"),
        ({"topk_sweep": [{"topk": 0}]}, r"topk_sweep\[0\]: perplexity is missing"),
        ({"routing_change": [3]}, r"routing_change\[0\] must be an object"),
        ({"exact_match": {"sql": {"right": 2, "of": 1}}}, "sql: right is 2 of 1"),
        ({"validation_by_task": []}, "validation_by_task must be an object"),
    ],
)
def test_a_wrong_field_of_a_run_is_named(tmp_path: Path, final: dict[str, Any], words: str) -> None:
    inputs = Inputs(results=tmp_path, checkpoint=tmp_path)
    write_run(inputs, "main", **final)
    with pytest.raises(ResultError, match=rf"run-main\.json: .*{words}"):
        read_run(tmp_path, "main")


def test_a_run_from_before_answers_had_a_loss_of_their_own_is_read_all_the_same(tmp_path: Path) -> None:
    inputs = Inputs(results=tmp_path, checkpoint=tmp_path)
    write_curves(inputs, "main", tuple(name for name in CURVES if name != "answer_loss"))
    curves = read_curves(tmp_path, "main")
    assert all(map(math.isnan, curves["answer_loss"]))
    assert curves["mtp_loss"] == [1.0, 0.5, pytest.approx(1 / 3), 0.25, 0.2]


def test_a_wrong_cell_or_column_of_a_curve_is_named(tmp_path: Path) -> None:
    inputs = Inputs(results=tmp_path, checkpoint=tmp_path)
    write_curves(inputs, "main")
    assert math.isnan(read_curves(tmp_path, "main")["index_kl"][0])
    file = tmp_path / "run-main.csv"
    file.write_text(file.read_text().replace("0.25", "quarter", 1))
    with pytest.raises(ResultError, match=r"run-main\.csv: line 5, column loss is 'quarter'"):
        read_curves(tmp_path, "main")
    write_curves(inputs, "main", columns=CURVES[1:])
    with pytest.raises(ResultError, match=r"run-main\.csv: column step is missing"):
        read_curves(tmp_path, "main")


@pytest.mark.usefixtures("undrawn")
def test_a_missing_comparison_leaves_the_rest_of_its_section(tmp_path: Path) -> None:
    inputs = write_all(tmp_path)
    for name in ("nobias", "dense"):
        (inputs.results / f"run-{name}.json").unlink()
    section = filled(fill_of("Expert utilisation"), inputs, tmp_path)
    assert "Not measured: results/run-nobias.json is missing." in section.lines
    assert len(section.goals) == 2
    section = filled(fill_of("DSA against dense attention"), inputs, tmp_path)
    assert "Not measured: results/run-dense.json is missing." in section.lines
    assert len(section.goals) == 1


@pytest.mark.usefixtures("undrawn")
def test_what_is_bad_in_a_run_is_not_reached(tmp_path: Path) -> None:
    inputs = write_all(tmp_path)
    tasks = {"sql": {"loss": 1, "accuracy": 0.5, "mtp_acceptance": 0.25}}
    dead = [[0.0, *([1 / 30] * 30), 0.5]] * LAYERS
    for name in ("main", "fp8"):
        write_run(inputs, name, loss=0.6, validation_by_task=tasks, expert_load=dead)
    for title, words in (
        ("Expert utilisation", ("Measured: 10.67 in the worst, **not", "Measured: 3, **not")),
        ("FP8 against BF16", ("0.6000 against 0.5000 (+20.00 %), **not",)),
        ("MTP acceptance", ("Measured: 25.0 %, **not", "**Bad:** below the goal: sql 25.0 %")),
    ):
        text = "\n".join(filled(fill_of(title), inputs, tmp_path).lines)
        assert all(word in text for word in words), text


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_seeds_and_changed_weights_are_said_to_be_so(tmp_path: Path) -> None:
    inputs = write_all(tmp_path)
    run = made_up_run("bf16") | {"seed": 2}
    (inputs.results / "run-bf16.json").write_text(json.dumps(run))
    section = filled(fill_of("FP8 against BF16"), inputs, tmp_path)
    assert "**Bad:** runs fp8 and bf16 differ in seed: the comparison is not fair." in section.lines
    (inputs.checkpoint / "model.safetensors").write_bytes(b"other")
    section = filled(fill_of("The model"), inputs, tmp_path)
    assert "**Bad:** model.safetensors: not the file whose hash was recorded." in section.lines


# Arithmetic of curves and experts


@settings(max_examples=25)
@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(math.nan)), max_size=1000))
def test_windows_are_few_and_stay_between_the_values(values: list[float]) -> None:
    found = windowed(values)
    assert len(found) <= MAX_POINTS
    assert len(found) == len(values) or len(values) > MAX_POINTS
    known = [value for value in values if not math.isnan(value)]
    assert all(min(known) - 1e-6 <= one <= max(known) + 1e-6 for one in found if not math.isnan(one))


LOADS = st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda row: sum(row) > 1e-6)


@settings(max_examples=25)
@given(LOADS)
def test_relative_loads_have_the_mean_one(row: list[float]) -> None:
    assert sum(relative(row)) == pytest.approx(len(row))


@settings(max_examples=25)
@given(st.lists(LOADS.map(lambda row: (row + [0.0] * 40)[:40]), min_size=1, max_size=5))
def test_specialisation_is_between_none_and_all(rows: list[list[float]]) -> None:
    found = specialisation([(tuple(row),) for row in rows], 0)
    assert all(-1e-9 <= one <= 1 + 1e-9 for one in found)


def test_specialisation_tells_shared_experts_from_own_ones() -> None:
    shared, own = ((0.5, 0.5, 0.0, 0.0),), ((0.0, 0.0, 0.5, 0.5),)
    assert specialisation([shared, shared], 0) == [0, 0]
    assert specialisation([shared, own], 0) == [1, 1]
