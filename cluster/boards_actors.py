"""Boards of the attention actors: their steps, their cache, their drafts.

Knows nothing of files, nor of how Grafana spells a board.
"""

from __future__ import annotations

from cluster.panels import Board, Panel, Query, per, rate, ratio, recent, share

DECODED = rate("shoal_tokens_total{phase='decode'}")
HELD = rate("shoal_drafts_total{result='accepted'}")

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
            "What a step computes: milliseconds of one that is timed",
            (
                Query(
                    f"1000 * {rate('shoal_timed_seconds_total', 'part')} "
                    f"/ on () group_left () {rate('shoal_timed_steps_total')}",
                    "{{part}}",
                ),
            ),
            "ms",
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
        Panel(
            "Tokens in a step",
            (Query(ratio(rate("shoal_tokens_total"), rate("shoal_steps_total")), "tokens"),),
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

MEMORY = Board(
    "shoal-memory",
    "Shoal: memory",
    (
        Panel("Pages of the cache", (Query("sum by (state) (shoal_pages)", "{{state}}"),)),
        Panel(
            "Prompt tokens found in the prefix cache",
            (Query(share("shoal_prefix_tokens_total", "result='hit'"), "share"),),
            "percentunit",
        ),
        Panel(
            "Sequences sent back for want of pages",
            (Query(rate("shoal_preemptions_total"), "sent back"),),
            "cps",
        ),
        Panel("Memory of a process", (Query("process_resident_memory_bytes", "{{actor}}"),), "bytes"),
        Panel("Open files", (Query("process_open_fds", "{{actor}}"),)),
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
    ),
)

MTP = Board(
    "shoal-mtp",
    "Shoal: drafts (MTP)",
    (
        Panel(
            "Drafts that held, by place",
            (Query(share("shoal_drafts_total", "result='accepted'", "place"), "{{place}}"),),
            "percentunit",
        ),
        per("shoal_drafts_total", "result", "cps", is_stacked=True, title="Drafts"),
        Panel(
            "Tokens made for each that was not drafted",
            (
                Query(
                    ratio(DECODED, f"({DECODED} - {HELD})"),
                    "tokens",
                ),
            ),
        ),
    ),
)
