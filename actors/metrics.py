"""The metrics: one list of all that Shoal tells Prometheus.

Names follow Prometheus' rules (base units, `_total` on counters). An alias is the name under which vLLM's
dashboards and load balancers look for the same thing. Knows nothing of how it is told, or to whom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Role = Literal["attention", "expert", "ingress", "controller"]

HOTTEST = 16  # (layer, expert) pairs that are told apart: all of them would be 15,000 series


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, who tells it, and what its labels are."""

    name: str
    kind: Kind
    roles: tuple[Role, ...]
    labels: tuple[str, ...]
    help: str
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram's value: bounds, counts (one more, without bound) and the sum of what was observed."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


@dataclass(frozen=True, slots=True)
class Sample:
    """A value now; labels in the order of the metric's."""

    name: str
    value: float | Buckets
    labels: tuple[str, ...] = ()


_ATTENTION: tuple[Role, ...] = ("attention",)
_EXPERT: tuple[Role, ...] = ("expert",)
_INGRESS: tuple[Role, ...] = ("ingress",)
_CONTROLLER: tuple[Role, ...] = ("controller",)

METRICS: tuple[Metric, ...] = (
    # The step loop
    Metric("shoal_steps_total", "counter", _ATTENTION, (), "Steps computed."),
    Metric("shoal_split_steps_total", "counter", _ATTENTION, (), "Steps computed as two micro-batches."),
    Metric(
        "shoal_overlap_changes_total",
        "counter",
        _ATTENTION,
        (),
        "Times that measuring chose one batch or two where it had been the other.",
    ),
    Metric(
        "shoal_late_compilations_total",
        "counter",
        _ATTENTION,
        (),
        "GPU kernels compiled after warm-up: a step waited for each. 0 unless something is wrong.",
    ),
    Metric(
        "shoal_tokens_total",
        "counter",
        _ATTENTION,
        ("phase",),
        "Tokens computed: of prompts (prefill), and made (decode).",
    ),
    Metric(
        "shoal_step_seconds_total",
        "counter",
        _ATTENTION,
        ("part",),
        "Time of the step loop by part; forward holds the waiting for experts.",
    ),
    Metric(
        "shoal_timed_steps_total",
        "counter",
        _ATTENTION,
        (),
        "Steps whose parts were timed, one in 100.",
    ),
    Metric(
        "shoal_timed_seconds_total",
        "counter",
        _ATTENTION,
        ("part",),
        "Time of those steps by what was computed.",
    ),
    Metric(
        "shoal_expert_wait_seconds_total",
        "counter",
        _ATTENTION,
        (),
        "Time in which a layer waited for its routed experts.",
    ),
    Metric(
        "shoal_device_wait_seconds_total",
        "counter",
        _ATTENTION,
        (),
        "Time in which the step loop waited for its GPU; what else forward and draft hold is the host's.",
    ),
    Metric(
        "shoal_sequences",
        "gauge",
        _ATTENTION,
        ("state",),
        "Sequences in the step (running) or queue (waiting).",
    ),
    Metric("shoal_queue_wait_seconds", "gauge", _ATTENTION, (), "Estimated time until all that waits began."),
    Metric("shoal_sequences_ended_total", "counter", _ATTENTION, (), "Sequences that have left."),
    Metric("shoal_sequences_refused_total", "counter", _ATTENTION, (), "Sequences told to come back later."),
    Metric(
        "shoal_preemptions_total",
        "counter",
        _ATTENTION,
        (),
        "Sequences sent back for want of pages.",
        "vllm:num_preemptions",
    ),
    Metric(
        "shoal_pages", "gauge", _ATTENTION, ("state",), "Pages of latent and index cache, 64 tokens each."
    ),
    Metric(
        "shoal_prefix_tokens_total",
        "counter",
        _ATTENTION,
        ("result",),
        "Tokens of sequences that began: found in the prefix cache (hit) or not (miss).",
    ),
    Metric(
        "shoal_handed_sequences_total",
        "counter",
        _ATTENTION,
        ("result",),
        "Sequences of an actor that leaves: moved with their pages, or kept because that failed.",
    ),
    Metric(
        "shoal_handed_pages_total",
        "counter",
        _ATTENTION,
        ("way",),
        "Pages handed over, out to other actors and in from them.",
    ),
    Metric("shoal_handed_bytes_total", "counter", _ATTENTION, ("way",), "What these pages hold, in bytes."),
    Metric(
        "shoal_handover_seconds_total",
        "counter",
        _ATTENTION,
        (),
        "Time of all hand-overs of this actor's sequences, of which some go side by side.",
    ),
    Metric(
        "shoal_drafts_total",
        "counter",
        _ATTENTION,
        ("place", "result"),
        "Tokens drafted by the MTP layer, by place in the draft and whether they held.",
    ),
    # Experts as the attention side sees them
    Metric(
        "shoal_expert_pairs_total",
        "counter",
        _ATTENTION,
        ("layer",),
        "Pairs (token, expert) answered, by layer.",
    ),
    Metric(
        "shoal_expert_load",
        "gauge",
        _ATTENTION,
        ("layer", "stat"),
        "Pairs an expert of the layer got in the last minute: max, mean, p99, and cv (deviation / mean).",
    ),
    Metric(
        "shoal_expert_imbalance",
        "gauge",
        _ATTENTION,
        ("layer",),
        "Load of the layer's hottest expert over the mean in the last minute.",
    ),
    Metric(
        "shoal_expert_heat",
        "gauge",
        _ATTENTION,
        ("layer", "expert"),
        f"The {HOTTEST} hottest experts of the last minute: load over their layer's mean.",
    ),
    Metric("shoal_dispatch_parcels_total", "counter", _ATTENTION, ("peer",), "Parcels sent to an expert."),
    Metric("shoal_dispatch_pairs_total", "counter", _ATTENTION, ("peer",), "Pairs sent to the expert actor."),
    Metric(
        "shoal_dispatch_bytes_total",
        "counter",
        _ATTENTION,
        ("peer", "direction"),
        "Bytes of hidden states to the peer (out) and of its answers (back), without headers.",
    ),
    Metric(
        "shoal_dispatch_seconds",
        "histogram",
        _ATTENTION,
        ("peer",),
        "From sending a parcel to having its answer.",
    ),
    Metric("shoal_retried_pairs_total", "counter", _ATTENTION, (), "Pairs sent again, elsewhere or later."),
    Metric("shoal_lost_actors_total", "counter", _ATTENTION, (), "Expert actors counted out of a view."),
    Metric("shoal_parked_seconds_total", "counter", _ATTENTION, (), "Time in which an expert had no holder."),
    Metric("shoal_epoch", "gauge", ("attention", "controller"), (), "The view in use."),
    # The expert side
    Metric("shoal_expert_parcels_total", "counter", _EXPERT, (), "Parcels answered."),
    Metric("shoal_expert_rows_total", "counter", _EXPERT, (), "Pairs (token, expert) computed."),
    Metric("shoal_expert_batches_total", "counter", _EXPERT, (), "Passes over the weights of a layer."),
    Metric("shoal_expert_refused_total", "counter", _EXPERT, (), "Parcels refused."),
    Metric("shoal_expert_busy_seconds_total", "counter", _EXPERT, (), "Time spent computing."),
    Metric("shoal_experts_held", "gauge", _EXPERT, (), "Experts of a layer held here, in the mean."),
    Metric(
        "shoal_experts_taken_total",
        "counter",
        _EXPERT,
        ("origin",),
        "Experts that came to be held here, each layer's for itself, out of files or from peers.",
    ),
    Metric(
        "shoal_expert_bytes_taken_total",
        "counter",
        _EXPERT,
        ("origin",),
        "What their weights take in memory, in bytes.",
    ),
    Metric("shoal_expert_bytes_given_total", "counter", _EXPERT, (), "Bytes of weights sent to peers."),
    # What vLLM's tools look for and we tell in another shape
    Metric("vllm:num_requests_waiting", "gauge", _ATTENTION, (), "Sequences that wait in the queue."),
    Metric("vllm:kv_cache_usage_perc", "gauge", _ATTENTION, (), "Share of the pages that is in use."),
    Metric("vllm:prefix_cache_queries", "counter", _ATTENTION, (), "Tokens looked for in the prefix cache."),
    Metric("vllm:prefix_cache_hits", "counter", _ATTENTION, (), "Tokens found in the prefix cache."),
    Metric(
        "vllm:spec_decode_num_accepted_tokens_per_pos",
        "counter",
        _ATTENTION,
        ("position",),
        "Drafts that held, by place in the draft from 0 on.",
    ),
    Metric(
        "vllm:request_success",
        "counter",
        _INGRESS,
        ("finished_reason",),
        "Choices that came to an end of their own.",
    ),
    # Requests
    Metric(
        "shoal_requests_total",
        "counter",
        _INGRESS,
        ("finish",),
        "Choices ended by the engine, or cut at the door: a stop string, a client that left, a failure.",
    ),
    Metric("shoal_prompt_tokens_total", "counter", _INGRESS, (), "Tokens of prompts.", "vllm:prompt_tokens"),
    Metric(
        "shoal_generated_tokens_total", "counter", _INGRESS, (), "Tokens delivered.", "vllm:generation_tokens"
    ),
    Metric("shoal_open_sequences", "gauge", _INGRESS, (), "Choices under way.", "vllm:num_requests_running"),
    Metric("shoal_resumed_total", "counter", _INGRESS, (), "Times that a sequence went on at another actor."),
    Metric(
        "shoal_first_token_seconds",
        "histogram",
        _INGRESS,
        (),
        "From a choice's start to its first token.",
        "vllm:time_to_first_token_seconds",
    ),
    Metric(
        "shoal_token_gap_seconds",
        "histogram",
        _INGRESS,
        (),
        "Between deliveries of one choice.",
        "vllm:inter_token_latency_seconds",
    ),
    Metric(
        "shoal_request_seconds",
        "histogram",
        _INGRESS,
        (),
        "From a choice's start to its end.",
        "vllm:e2e_request_latency_seconds",
    ),
    Metric(
        "shoal_queue_seconds",
        "histogram",
        _INGRESS,
        (),
        "From a choice's arrival at its attention actor to its first step, of those that an actor ended.",
        "vllm:request_queue_time_seconds",
    ),
    Metric(
        "shoal_token_seconds",
        "histogram",
        _INGRESS,
        (),
        "Of one choice: time per token after its first.",
        "vllm:request_time_per_output_token_seconds",
    ),
    Metric("shoal_answers_total", "counter", _INGRESS, ("status",), "Requests answered, by HTTP status."),
    # Tenants: names of API keys, or marks of what came as one; the first of an ingress, and all others
    Metric(
        "shoal_tenant_requests_total",
        "counter",
        _INGRESS,
        ("tenant",),
        "Requests that asked for something to be computed.",
    ),
    Metric(
        "shoal_tenant_refused_total",
        "counter",
        _INGRESS,
        ("tenant",),
        "Those of them that were answered with 429 or 503.",
    ),
    Metric(
        "shoal_tenant_tokens_total",
        "counter",
        _INGRESS,
        ("tenant", "kind"),
        "Tokens of prompts, those of them found in the prefix cache (cached), and generated.",
    ),
    Metric(
        "shoal_tenant_queue_seconds_total",
        "counter",
        _INGRESS,
        ("tenant",),
        "Time that choices waited for their first step.",
    ),
    # The cluster
    Metric(
        "shoal_actors", "gauge", _CONTROLLER, ("kind", "state"), "Actors that serve, load or are given up."
    ),
    Metric("shoal_deaths_total", "counter", _CONTROLLER, ("member",), "Times that the actor died."),
    Metric(
        "shoal_faults_total",
        "counter",
        _CONTROLLER,
        ("cause",),
        "Ends of lives that nobody wanted, by what was noticed.",
    ),
    Metric(
        "shoal_detection_seconds",
        "gauge",
        _CONTROLLER,
        ("member",),
        "Of the actor's last end: since its last sign of life when that was noticed.",
    ),
    Metric(
        "shoal_recovery_seconds",
        "gauge",
        _CONTROLLER,
        ("member",),
        "Of the actor's last death: from noticing it to serving again.",
    ),
    Metric(
        "shoal_placement_imbalance",
        "gauge",
        _CONTROLLER,
        ("stage",),
        "Load of the busiest expert actor over the mean, mean of the layers: measured (before), and expected "
        "of the last rebalance (after).",
    ),
    Metric("shoal_slots_written_total", "counter", _CONTROLLER, (), "Experts moved to even the load."),
    Metric(
        "shoal_decisions_total",
        "counter",
        _CONTROLLER,
        ("decision", "source"),
        "Decisions to scale, drain, restart or rebalance, by an operator, the autoscaler or the controller.",
    ),
)

BY_NAME = {metric.name: metric for metric in METRICS}
