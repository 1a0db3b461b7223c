"""What a board is made of: panels, their queries, and the few shapes that most queries have.

Knows nothing of what is on a board, of files, nor of how Grafana spells one.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = "1m"  # of rates; several scrapes
PROMISED_S = ("1.0", "0.05")  # bounds of histograms: to the first token, and per token after it


@dataclass(frozen=True, slots=True)
class Query:
    """expression: PromQL. legend: Grafana's template of a series' name."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """unit: Grafana's name of it. kind: timeseries, stat or bargauge."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A line over all panels wherever the expression is above 0. title: Grafana's template of its words."""

    name: str
    expression: str
    title: str
    color: str


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    panels: tuple[Panel, ...]


def recent(series: str) -> str:
    """Per second."""
    return f"rate({series}[{WINDOW}])"


def rate(metric: str, by: str = "") -> str:
    """Per second, summed, by the given labels."""
    return f"sum{f' by ({by})' if by else ''} ({recent(metric)})"


def ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def share(metric: str, which: str, by: str = "") -> str:
    """Of a counter's rate, what the given labels have of it."""
    return ratio(rate(f"{metric}{{{which}}}", by), rate(metric, by))


def quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    """p50, p95 and p99 of a histogram."""
    labels, series = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    buckets = f"sum by ({labels}) ({recent(f'{metric}_bucket')})"
    return tuple(
        Query(f"histogram_quantile({share}, {buckets})", f"p{round(100 * share)}{series}")
        for share in (0.5, 0.95, 0.99)
    )


def counted(metric: str, by: str = "", within: str = "1h") -> str:
    """How often, summed, by the given labels."""
    return f"sum{f' by ({by})' if by else ''} (increase({metric}[{within}]))"


def mean(metric: str) -> str:
    """Of a histogram's observations."""
    return ratio(rate(f"{metric}_sum"), rate(f"{metric}_count"))


def within(metric: str, bound: str) -> str:
    """Share of a histogram's observations up to one of its bounds."""
    return ratio(rate(f"{metric}_bucket{{le='{bound}'}}"), rate(f"{metric}_count"))


def per(metric: str, label: str, unit: str = "short", *, is_stacked: bool = False, title: str = "") -> Panel:
    """A rate for every value of a label."""
    query = Query(rate(metric, label), f"{{{{{label}}}}}")
    return Panel(title or metric, (query,), unit, is_stacked=is_stacked)
