"""Grafana's boards, as code: what clients notice first, what it is made of after that.

Every metric that we tell is on a board. Knows nothing of files, nor of how Grafana spells a board.
"""

from __future__ import annotations

from cluster.boards_actors import ENGINE, MEMORY, MTP
from cluster.boards_experts import DISPATCH, EXPERTS, REPLICAS
from cluster.boards_fleet import AUTOSCALER, FAULTS
from cluster.panels import (
    PROMISED_S,
    WINDOW,
    Board,
    Mark,
    Panel,
    Query,
    counted,
    mean,
    per,
    quantiles,
    rate,
    ratio,
    within,
)

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
        per("shoal_answers_total", "status", "reqps", is_stacked=True, title="Answers by HTTP status"),
        Panel(
            "Sequences",
            (
                Query("sum by (state) (shoal_sequences)", "{{state}}"),
                Query("sum(shoal_open_sequences)", "open at the door"),
            ),
        ),
        Panel("Worst layer: hottest expert over the mean", (Query("max(shoal_expert_imbalance)", "x"),)),
        Panel("First token", quantiles("shoal_first_token_seconds"), "s"),
        Panel("Per token after the first", quantiles("shoal_token_seconds"), "s"),
        Panel("Actors", (Query("sum by (kind, state) (shoal_actors)", "{{kind}} {{state}}"),), kind="stat"),
        Panel("View in use", (Query("max(shoal_epoch)", "epoch"),), kind="stat"),
    ),
)

LATENCY = Board(
    "shoal-latency",
    "Shoal: latency",
    (
        Panel("First token", quantiles("shoal_first_token_seconds"), "s"),
        Panel("In the queue", quantiles("shoal_queue_seconds"), "s"),
        Panel("Per token after the first", quantiles("shoal_token_seconds"), "s"),
        Panel("Between deliveries", quantiles("shoal_token_gap_seconds"), "s"),
        Panel("Whole request", quantiles("shoal_request_seconds"), "s"),
        Panel(
            "Means",
            (
                Query(mean("shoal_queue_seconds"), "queue"),
                Query(mean("shoal_first_token_seconds"), "first token"),
                Query(mean("shoal_request_seconds"), "whole"),
            ),
            "s",
        ),
        Panel(
            "Share as promised",
            (
                Query(
                    within("shoal_first_token_seconds", PROMISED_S[0]), f"first token in {PROMISED_S[0]} s"
                ),
                Query(within("shoal_token_seconds", PROMISED_S[1]), f"{PROMISED_S[1]} s per token"),
            ),
            "percentunit",
        ),
        Panel("Who comes now waits", (Query("max(shoal_queue_wait_seconds)", "estimate"),), "s"),
    ),
)

TENANTS = Board(
    "shoal-tenants",
    "Shoal: tenants",
    (
        per("shoal_tenant_requests_total", "tenant", "reqps", is_stacked=True, title="Requests"),
        per(
            "shoal_tenant_refused_total", "tenant", "reqps", is_stacked=True, title="Refused with 429 or 503"
        ),
        Panel(
            "Share of all tokens generated",
            (
                Query(
                    ratio(
                        rate("shoal_tenant_tokens_total{kind='generated'}", "tenant"),
                        f"on () group_left () {rate('shoal_generated_tokens_total')}",
                    ),
                    "{{tenant}}",
                ),
            ),
            "percentunit",
            is_stacked=True,
        ),
        Panel(
            "Tokens of prompts",
            (Query(rate("shoal_tenant_tokens_total{kind='prompt'}", "tenant"), "{{tenant}}"),),
            "cps",
            is_stacked=True,
        ),
        Panel(
            "Share of the prompts' tokens found in the cache",
            (
                Query(
                    ratio(
                        rate("shoal_tenant_tokens_total{kind='cached'}", "tenant"),
                        rate("shoal_tenant_tokens_total{kind='prompt'}", "tenant"),
                    ),
                    "{{tenant}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Time in the queue, for each request",
            (
                Query(
                    ratio(
                        rate("shoal_tenant_queue_seconds_total", "tenant"),
                        rate("shoal_tenant_requests_total", "tenant"),
                    ),
                    "{{tenant}}",
                ),
            ),
            "s",
        ),
    ),
)

BOARDS = (
    *(OVERVIEW, LATENCY, TENANTS),
    *(EXPERTS, REPLICAS, DISPATCH),
    *(ENGINE, MEMORY, MTP),
    *(FAULTS, AUTOSCALER),
)

MARKS = (
    Mark("Deaths", counted("shoal_deaths_total", "member", WINDOW), "{{member}} died", "red"),
    Mark(
        "Decisions",
        counted("shoal_decisions_total", "decision, source", WINDOW),
        "{{decision}}: {{source}}",
        "blue",
    ),
    Mark("Experts moved", counted("shoal_slots_written_total", within=WINDOW), "experts moved", "purple"),
)
