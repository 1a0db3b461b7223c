"""Boards of the experts: who is hot, who holds what, and the way there and back.

Knows nothing of files, nor of how Grafana spells a board.
"""

from __future__ import annotations

from cluster.panels import Board, Panel, Query, counted, per, quantiles, rate, ratio, recent

EXPERTS = Board(
    "shoal-experts",
    "Shoal: expert load imbalance",
    (
        Panel(
            "Imbalance by layer: hottest expert over the mean",
            (Query("max by (layer) (shoal_expert_imbalance)", "layer {{layer}}"),),
        ),
        Panel(
            "Worst layer, and the mean of all",
            (
                Query("max(shoal_expert_imbalance)", "worst"),
                Query("avg(shoal_expert_imbalance)", "mean"),
            ),
            kind="stat",
        ),
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
            "Throughput that unevenness costs, at most",
            (
                Query(
                    "1 - 1 / clamp_min(max(shoal_placement_imbalance{stage='before'}), 1)",
                    "of the expert actors",
                ),
            ),
            "percentunit",
        ),
    ),
)

REPLICAS = Board(
    "shoal-replicas",
    "Shoal: replicas and moves",
    (
        Panel("Experts held", (Query("sum by (actor) (shoal_experts_held)", "{{actor}}"),), kind="stat"),
        Panel(
            "Imbalance of the expert actors, before and after the last rebalance",
            (Query("max by (stage) (shoal_placement_imbalance)", "{{stage}}"),),
        ),
        Panel(
            "Experts moved to even the load",
            (Query(counted("shoal_slots_written_total"), "in an hour"),),
            kind="stat",
        ),
        Panel(
            "Weights that came to be held, out of files or from peers",
            (Query(rate("shoal_expert_bytes_taken_total", "actor, origin"), "{{actor}} from {{origin}}"),),
            "Bps",
        ),
        Panel(
            "Weights sent to peers",
            (Query(rate("shoal_expert_bytes_given_total", "actor"), "{{actor}}"),),
            "Bps",
        ),
        Panel(
            "Experts taken in an hour, each layer's for itself",
            (Query(counted("shoal_experts_taken_total", "origin"), "from {{origin}}"),),
            kind="stat",
        ),
        Panel("View in use", (Query("max by (actor) (shoal_epoch)", "{{actor}}"),)),
        Panel(
            "Share of time without a holder of some expert",
            (Query(recent("shoal_parked_seconds_total"), "{{instance}}"),),
            "percentunit",
        ),
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
            "Parcels for each step: the fan-out over all layers",
            (Query(ratio(rate("shoal_dispatch_parcels_total"), rate("shoal_steps_total")), "parcels"),),
        ),
        Panel(
            "Share of time that a layer waits for experts, the step loop for its GPU",
            (
                Query(recent("shoal_expert_wait_seconds_total"), "{{instance}}, experts"),
                Query(recent("shoal_device_wait_seconds_total"), "{{instance}}, GPU"),
            ),
            "percentunit",
        ),
        Panel("Pairs sent again", (Query(rate("shoal_retried_pairs_total"), "retried"),), "cps"),
        Panel("Parcels refused", (Query(rate("shoal_expert_refused_total", "actor"), "{{actor}}"),), "cps"),
    ),
)
