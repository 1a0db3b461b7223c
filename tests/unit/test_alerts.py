"""Alerts fire where something is wrong and are silent where nothing is, by Prometheus' own judgement."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.alerts import ALERTS
from cluster.grafana import rules

EVERY_S, STEPS = 15, 80  # twenty minutes of samples
Series = dict[str, str]


def steady(rate: float) -> str:
    """A counter that rises by so much a second."""
    return f"0+{rate * EVERY_S:g}x{STEPS}"


def still(value: float) -> str:
    return f"{value:g}x{STEPS}"


@dataclass(frozen=True)
class Case:
    """wrong: samples of a cluster where the alert must fire with these words; right: where it must not."""

    alert: str
    wrong: Series
    summary: str
    right: Series
    labels: tuple[tuple[str, str], ...] = ()


def first_tokens(soon: float) -> Series:
    """Two choices a second, so much of them within a second."""
    name = "shoal_first_token_seconds"
    return {
        f'{name}_bucket{{le="1.0"}}': steady(2 * soon),
        f'{name}_bucket{{le="+Inf"}}': steady(2),
        f"{name}_count": steady(2),
    }


CASES = (
    Case(
        "ShoalProcessDown",
        {'up{job="shoal",actor="expert-1"}': still(0)},
        "expert-1 does not answer scrapes",
        {'up{job="shoal",actor="expert-1"}': still(1), 'up{job="other"}': still(0)},
        (("actor", "expert-1"), ("job", "shoal")),
    ),
    Case(
        "ShoalActorNotServing",
        {'shoal_actors{kind="expert",state="loads"}': still(2)},
        "2 expert actors do not serve",
        {
            'shoal_actors{kind="expert",state="loads"}': f"0x10 1 1 0x{STEPS}",
            'shoal_actors{kind="expert",state="serves"}': still(2),
        },
        (("kind", "expert"),),
    ),
    Case(
        "ShoalExpertWithoutHolder",
        {'shoal_parked_seconds_total{actor="attention-0"}': steady(0.9)},
        "steps wait for an expert that nobody holds",
        {'shoal_parked_seconds_total{actor="attention-0"}': steady(0.1)},
        (("actor", "attention-0"),),
    ),
    Case(
        "ShoalExpertImbalance",
        {
            'shoal_expert_imbalance{layer="5"}': still(4),
            'shoal_expert_pairs_total{layer="5"}': steady(2000),
        },
        "layer 5: the hottest expert gets 4 times the mean",
        {'shoal_expert_imbalance{layer="5"}': still(4), 'shoal_expert_pairs_total{layer="5"}': steady(10)},
        (("layer", "5"),),
    ),
    Case(
        "ShoalDeaths",
        {'shoal_deaths_total{member="expert-1"}': f"0x20 4x{STEPS}"},
        "expert-1 died 4 times in ten minutes",
        {'shoal_deaths_total{member="expert-1"}': f"0x20 3x{STEPS}"},
        (("member", "expert-1"),),
    ),
    Case(
        "ShoalSlowRecovery",
        {
            'shoal_recovery_seconds{member="expert-1"}': still(45),
            'shoal_deaths_total{member="expert-1"}': f"0x20 1x{STEPS}",
        },
        "expert-1 took 45 s to serve again",
        {
            'shoal_recovery_seconds{member="expert-1"}': still(45),
            'shoal_deaths_total{member="expert-1"}': still(1),
        },
        (("member", "expert-1"),),
    ),
    Case(
        "ShoalPagesShort",
        {'shoal_pages{state="used"}': still(98), 'shoal_pages{state="free"}': still(2)},
        "98% of the cache's pages are in use",
        {
            'shoal_pages{state="used"}': still(90),
            'shoal_pages{state="free"}': still(10),
            'shoal_pages{state="cached"}': still(80),
        },
    ),
    Case(
        "ShoalQueueLong",
        {'shoal_queue_wait_seconds{actor="attention-0"}': still(42)},
        "who comes now waits 42 s",
        {'shoal_queue_wait_seconds{actor="attention-0"}': still(12)},
    ),
    Case(
        "ShoalFirstTokenSlow",
        first_tokens(0.5),
        "50% of the choices begin within a second",
        first_tokens(0.95),
    ),
    Case(
        "ShoalViewsDisagree",
        {
            'shoal_epoch{role="attention",actor="attention-0"}': still(7),
            'shoal_epoch{role="attention",actor="attention-1"}': still(5),
        },
        "attention actors use views 2 apart",
        {
            'shoal_epoch{role="attention",actor="attention-0"}': still(7),
            'shoal_epoch{role="attention",actor="attention-1"}': f"6x3 7x{STEPS}",
        },
    ),
)


def expectation(case: Case, series: Series, *, fires: bool) -> dict[str, Any]:
    """One test of promtool's."""
    [alert] = [alert for alert in ALERTS.alerts if alert.name == case.alert]
    told = {"summary": case.summary, "runbook": f"docs/operations.md#{alert.runbook}"}
    expected = {"exp_labels": {"severity": alert.severity, **dict(case.labels)}, "exp_annotations": told}
    return {
        "name": f"{case.alert} {'fires' if fires else 'is silent'}",
        "interval": f"{EVERY_S}s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            {"eval_time": "12m", "alertname": case.alert, "exp_alerts": [expected] if fires else []}
        ],
    }


def test_every_alert_fires_for_what_it_is_for_and_for_nothing_less(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    assert [case.alert for case in CASES] == [alert.name for alert in ALERTS.alerts]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(ALERTS)))
    tests = [expectation(case, case.wrong, fires=True) for case in CASES]
    tests += [expectation(case, case.right, fires=False) for case in CASES]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}, sort_keys=False))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
