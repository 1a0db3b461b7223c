"""Boards of the fleet: who dies and comes back, and who decides that more or fewer should serve.

Knows nothing of files, nor of how Grafana spells a board.
"""

from __future__ import annotations

from cluster.panels import Board, Panel, Query, counted, rate, ratio, recent

FAULTS = Board(
    "shoal-faults",
    "Shoal: faults",
    (
        Panel("Deaths", (Query(counted("shoal_deaths_total", "member"), "{{member}}"),), kind="bargauge"),
        Panel(
            "What they were", (Query(counted("shoal_faults_total", "cause"), "{{cause}}"),), kind="bargauge"
        ),
        Panel(
            "From the last sign of life to noticing a death",
            (Query("max by (member) (shoal_detection_seconds)", "{{member}}"),),
            "s",
        ),
        Panel(
            "From a death to serving again",
            (Query("max by (member) (shoal_recovery_seconds)", "{{member}}"),),
            "s",
        ),
        Panel("Sequences that went on elsewhere", (Query(rate("shoal_resumed_total"), "resumed"),), "cps"),
        Panel("Experts counted out", (Query(rate("shoal_lost_actors_total"), "lost"),), "cps"),
        Panel("Pairs sent again", (Query(rate("shoal_retried_pairs_total"), "retried"),), "cps"),
        Panel(
            "Share of time without a holder of some expert",
            (Query(recent("shoal_parked_seconds_total"), "{{instance}}"),),
            "percentunit",
        ),
        Panel("View in use", (Query("max by (actor) (shoal_epoch)", "{{actor}}"),)),
    ),
)

AUTOSCALER = Board(
    "shoal-autoscaler",
    "Shoal: autoscaler and operators",
    (
        Panel(
            "Decisions in an hour, and whose",
            (Query(counted("shoal_decisions_total", "decision, source"), "{{decision}}: {{source}}"),),
            kind="bargauge",
        ),
        Panel("Actors", (Query("sum by (kind, state) (shoal_actors)", "{{kind}} {{state}}"),)),
        Panel(
            "What attention is scaled by: the queue", (Query("max(shoal_queue_wait_seconds)", "wait"),), "s"
        ),
        Panel(
            "What attention is scaled by: pages in use",
            (
                Query(
                    ratio("sum(shoal_pages{state='used'})", "sum(shoal_pages{state=~'used|free'})"), "share"
                ),
            ),
            "percentunit",
        ),
        Panel(
            "What experts are scaled by: share of time computing",
            (Query(rate("shoal_expert_busy_seconds_total", "actor"), "{{actor}}"),),
            "percentunit",
        ),
    ),
)
