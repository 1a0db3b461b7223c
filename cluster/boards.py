"""Grafana's boards, as code.

Every metric that we tell is on a board. Knows nothing of files, nor of how Grafana spells a board.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW = "1m"  # of rates; several scrapes


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


def per(metric: str, label: str, unit: str = "short", *, is_stacked: bool = False, title: str = "") -> Panel:
    """A rate for every value of a label."""
    query = Query(rate(metric, label), f"{{{{{label}}}}}")
    return Panel(title or metric, (query,), unit, is_stacked=is_stacked)


OVERVIEW = Board(
    "shoal-overview",
    "Shoal: overview",
    (
        per("shoal_tokens_total", "phase", "cps", is_stacked=True, title="Tokens computed"),
        Panel(
            "Tokens delivered and read",
            (
                Query(rate("shoal_generated_tokens_total"), "delivered"),
                Query(rate("shoal_prompt_tokens_total"), "of prompts"),
            ),
            "cps",
        ),
        per("shoal_requests_total", "finish", "reqps", is_stacked=True, title="Choices ended"),
        Panel(
            "Sequences",
            (
                Query("sum by (state) (shoal_sequences)", "{{state}}"),
                Query("sum(shoal_open_sequences)", "open at the door"),
            ),
        ),
        Panel("First token", quantiles("shoal_first_token_seconds"), "s"),
        Panel("Between deliveries", quantiles("shoal_token_gap_seconds"), "s"),
        Panel("Whole request", quantiles("shoal_request_seconds"), "s"),
        Panel("Actors", (Query("sum by (kind, state) (shoal_actors)", "{{kind}} {{state}}"),), kind="stat"),
    ),
)

EXPERTS = Board(
    "shoal-experts",
    "Shoal: expert load",
    (
        Panel(
            "Imbalance by layer: hottest expert over the mean",
            (Query("max by (layer) (shoal_expert_imbalance)", "layer {{layer}}"),),
        ),
        Panel("Worst layer", (Query("max(shoal_expert_imbalance)", "imbalance"),), kind="stat"),
        Panel(
            "The hottest experts",
            (Query("topk(16, max by (layer, expert) (shoal_expert_heat))", "{{layer}} / {{expert}}"),),
            kind="bargauge",
        ),
        Panel(
            "Load of an expert in the last minute",
            (Query("max by (stat) (shoal_expert_load{stat!='cv'})", "{{stat}} of the worst layer"),),
        ),
        Panel(
            "Deviation over mean, by layer",
            (Query("max by (layer) (shoal_expert_load{stat='cv'})", "layer {{layer}}"),),
        ),
        per("shoal_expert_pairs_total", "layer", "cps", title="Pairs (token, expert) by layer"),
        per("shoal_expert_rows_total", "actor", "cps", is_stacked=True, title="Rows computed by actor"),
        Panel(
            "Share of time that an expert actor computes",
            (Query(rate("shoal_expert_busy_seconds_total", "actor"), "{{actor}}"),),
            "percentunit",
        ),
        Panel(
            "Rows in a pass over the weights",
            (
                Query(
                    ratio(
                        rate("shoal_expert_rows_total", "actor"), rate("shoal_expert_batches_total", "actor")
                    ),
                    "{{actor}}",
                ),
            ),
        ),
        Panel(
            "Imbalance of the expert actors at the last look",
            (Query("max by (stage) (shoal_placement_imbalance)", "{{stage}}"),),
        ),
        Panel(
            "Experts moved to even the load",
            (Query("sum(increase(shoal_slots_written_total[1h]))", "in an hour"),),
            kind="stat",
        ),
        Panel("Experts held", (Query("sum by (actor) (shoal_experts_held)", "{{actor}}"),), kind="stat"),
    ),
)

DISPATCH = Board(
    "shoal-dispatch",
    "Shoal: dispatch",
    (
        Panel(
            "Hidden states on the wire",
            (Query(rate("shoal_dispatch_bytes_total", "peer, direction"), "{{peer}} {{direction}}"),),
            "Bps",
        ),
        per("shoal_dispatch_parcels_total", "peer", "cps", title="Parcels sent to an actor"),
        per("shoal_expert_parcels_total", "actor", "cps", title="Parcels answered by an actor"),
        per("shoal_dispatch_pairs_total", "peer", "cps", is_stacked=True, title="Pairs sent to an actor"),
        Panel("From a parcel to its answer", quantiles("shoal_dispatch_seconds", "peer"), "s"),
        Panel(
            "Share of time that a layer waits for experts",
            (Query(recent("shoal_expert_wait_seconds_total"), "{{instance}}"),),
            "percentunit",
        ),
        Panel("Pairs sent again", (Query(rate("shoal_retried_pairs_total"), "retried"),), "cps"),
        Panel("Parcels refused", (Query(rate("shoal_expert_refused_total", "actor"), "{{actor}}"),), "cps"),
    ),
)

ENGINE = Board(
    "shoal-engine",
    "Shoal: attention actors",
    (
        Panel(
            "Where the step loop's time goes",
            (Query(rate("shoal_step_seconds_total", "part"), "{{part}}"),),
            "percentunit",
            is_stacked=True,
        ),
        Panel(
            "Steps",
            (
                Query(recent("shoal_steps_total"), "{{instance}}"),
                Query(recent("shoal_split_steps_total"), "{{instance}}, as two micro-batches"),
                Query(recent("shoal_overlap_changes_total"), "{{instance}}, changes between one and two"),
                Query(recent("shoal_late_compilations_total"), "{{instance}}, kernels compiled late"),
            ),
            "cps",
        ),
        Panel("Pages of the cache", (Query("sum by (state) (shoal_pages)", "{{state}}"),), is_stacked=False),
        Panel(
            "Prompt tokens found in the prefix cache",
            (
                Query(
                    share("shoal_prefix_tokens_total", "result='hit'"),
                    "share",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Handed over by actors that leave",
            (
                Query(rate("shoal_handed_sequences_total", "result"), "sequences {{result}}"),
                Query(rate("shoal_handed_pages_total", "way"), "pages {{way}}"),
            ),
            "cps",
        ),
        Panel(
            "Bytes of pages handed over, in a second of transfer",
            (
                Query(
                    ratio(rate("shoal_handed_bytes_total{way='out'}"), rate("shoal_handover_seconds_total")),
                    "out",
                ),
            ),
            "Bps",
        ),
        Panel(
            "Drafts that held, by place",
            (
                Query(
                    share("shoal_drafts_total", "result='accepted'", "place"),
                    "{{place}}",
                ),
            ),
            "percentunit",
        ),
        Panel("Wait of the queue", (Query("max(shoal_queue_wait_seconds)", "estimate"),), "s"),
        Panel(
            "Sequences that left, were refused, were sent back",
            (
                Query(rate("shoal_sequences_ended_total"), "left"),
                Query(rate("shoal_sequences_refused_total"), "refused"),
                Query(rate("shoal_preemptions_total"), "preempted"),
            ),
            "cps",
        ),
    ),
)

FAULTS = Board(
    "shoal-faults",
    "Shoal: faults",
    (
        Panel(
            "Deaths",
            (Query("sum by (member) (increase(shoal_deaths_total[1h]))", "{{member}}"),),
            kind="bargauge",
        ),
        Panel(
            "From a death to serving again",
            (Query("max by (member) (shoal_recovery_seconds)", "{{member}}"),),
            "s",
        ),
        Panel("Sequences that went on elsewhere", (Query(rate("shoal_resumed_total"), "resumed"),), "cps"),
        Panel("Experts counted out", (Query(rate("shoal_lost_actors_total"), "lost"),), "cps"),
        Panel(
            "Share of time without a holder of some expert",
            (Query(recent("shoal_parked_seconds_total"), "{{instance}}"),),
            "percentunit",
        ),
        Panel("View in use", (Query("max by (actor) (shoal_epoch)", "{{actor}}"),)),
        Panel(
            "Decisions",
            (
                Query(
                    "sum by (decision, source) (increase(shoal_decisions_total[1h]))",
                    "{{decision}}: {{source}}",
                ),
            ),
            kind="bargauge",
        ),
        Panel("Memory", (Query("process_resident_memory_bytes", "{{actor}}"),), "bytes"),
        Panel("Open files", (Query("process_open_fds", "{{actor}}"),)),
    ),
)

BOARDS = (OVERVIEW, EXPERTS, DISPATCH, ENGINE, FAULTS)

MARKS = (
    Mark("Deaths", f"sum by (member) (increase(shoal_deaths_total[{WINDOW}]))", "{{member}} died", "red"),
    Mark(
        "Decisions",
        f"sum by (decision, source) (increase(shoal_decisions_total[{WINDOW}]))",
        "{{decision}}: {{source}}",
        "blue",
    ),
    Mark("Experts moved", f"sum(increase(shoal_slots_written_total[{WINDOW}]))", "experts moved", "purple"),
)
