"""What Prometheus should wake somebody for.

Each names what to do: a heading of docs/operations.md. Knows nothing of files.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.panels import PROMISED_S, within


@dataclass(frozen=True, slots=True)
class Alert:
    """lasts: how long the expression must hold. runbook: what to do, a heading of docs/operations.md."""

    name: str
    expression: str
    lasts: str
    summary: str
    runbook: str
    severity: str = "warning"


@dataclass(frozen=True, slots=True)
class AlertGroup:
    name: str
    alerts: tuple[Alert, ...]


ALERTS = AlertGroup(
    "shoal",
    (
        Alert(
            "ShoalProcessDown",
            "up{job='shoal'} == 0",
            "30s",
            "{{ $labels.actor }} does not answer scrapes",
            "a-process-does-not-answer",
            "critical",
        ),
        Alert(
            "ShoalActorNotServing",
            "sum by (kind) (shoal_actors{state!='serves'}) > 0",
            "1m",
            "{{ $value }} {{ $labels.kind }} actors do not serve",
            "an-actor-does-not-serve",
            "critical",
        ),
        Alert(
            "ShoalExpertWithoutHolder",
            "rate(shoal_parked_seconds_total[1m]) > 0.5",
            "30s",
            "steps wait for an expert that nobody holds",
            "an-expert-has-no-holder",
            "critical",
        ),
        Alert(
            "ShoalExpertImbalance",
            "max by (layer) (shoal_expert_imbalance) > 3 "
            "and sum by (layer) (rate(shoal_expert_pairs_total[5m])) > 1000",
            "5m",
            "layer {{ $labels.layer }}: the hottest expert gets {{ $value }} times the mean",
            "an-expert-is-hot",
        ),
        Alert(
            "ShoalDeaths",
            "sum by (member) (increase(shoal_deaths_total[10m])) > 3",
            "0s",
            "{{ $labels.member }} died {{ $value }} times in ten minutes",
            "an-actor-keeps-dying",
        ),
        Alert(
            "ShoalSlowRecovery",
            "shoal_recovery_seconds > 30 and increase(shoal_deaths_total[10m]) > 0",
            "0s",
            "{{ $labels.member }} took {{ $value }} s to serve again",
            "recovery-is-slow",
        ),
        Alert(
            "ShoalPagesShort",
            "sum(shoal_pages{state='used'}) / sum(shoal_pages{state=~'used|free'}) > 0.95",
            "2m",
            "{{ $value | humanizePercentage }} of the cache's pages are in use",
            "pages-run-short",
        ),
        Alert(
            "ShoalQueueLong",
            "max(shoal_queue_wait_seconds) > 30",
            "1m",
            "who comes now waits {{ $value }} s",
            "the-queue-is-long",
        ),
        Alert(
            "ShoalFirstTokenSlow",
            f"{within('shoal_first_token_seconds', PROMISED_S[0])} < 0.9 "
            "and sum(rate(shoal_first_token_seconds_count[5m])) > 0.1",
            "10m",
            "{{ $value | humanizePercentage }} of the choices begin within a second",
            "answers-begin-late",
        ),
        Alert(
            "ShoalViewsDisagree",
            "max(shoal_epoch{role='attention'}) - min(shoal_epoch{role='attention'}) > 0",
            "1m",
            "attention actors use views {{ $value }} apart",
            "views-disagree",
        ),
    ),
)
