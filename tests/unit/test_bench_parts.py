"""A long run in parts: what fails is told and ends nothing, and sums become shares of a step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.gpu_watch import Loop
from bench.parts import Report


def test_a_part_that_fails_is_told_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("bench.some", tmp_path / "out.json")
    report.part("first", lambda: 1 / 0)
    report.part("second", lambda: {"ms": 3})
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["first"] == "FAILED: ZeroDivisionError: division by zero" and report.failed == 1
    assert told["second"] == {"ms": 3}
    assert "Traceback" in capsys.readouterr().err


def test_what_a_step_took_leaves_out_idle_time_and_what_was_before() -> None:
    before = Loop(steps=10, device_s=1.0, parts_s={"forward": 2.0, "idle": 5.0})
    now = Loop(steps=20, device_s=1.06, parts_s={"forward": 2.08, "sample": 0.02, "idle": 9.0})
    assert now.since(before) == {
        "steps": 10,
        "step_ms": 10.0,
        "parts_ms": {"forward": 8.0, "sample": 2.0, "idle": 400.0},
        "gpu_ms": 6.0,
        "host_share": 0.4,
    }
