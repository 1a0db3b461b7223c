"""What the data-plane actors tell Prometheus, read from their counters.

Called on a scraper's thread while the step loop goes on: numbers may be one step apart. Knows nothing of
sockets.
"""

from __future__ import annotations

from collections.abc import Iterator

from actors.counters import EngineCounters, HandoverCounters
from actors.metrics import HOTTEST, Buckets, Sample
from actors.pages import PagePool
from actors.prefix import PrefixCache
from router.exchange import Exchange
from router.load import ANSWER_BUCKETS_S, Edge, ExpertLoad, balances, hottest


def step_samples(counters: EngineCounters) -> Iterator[Sample]:
    """The step loop: steps, tokens, where its time went, drafts."""
    yield Sample("shoal_steps_total", counters.steps)
    yield Sample("shoal_tokens_total", counters.prefill_tokens, ("prefill",))
    yield Sample("shoal_tokens_total", counters.decode_tokens, ("decode",))
    for part, seconds in list(counters.laps.seconds.items()):
        yield Sample("shoal_step_seconds_total", seconds, (part,))
    for place, (drafted, accepted) in enumerate(zip(counters.drafted, counters.accepted, strict=True), 1):
        yield Sample("shoal_drafts_total", accepted, (str(place), "accepted"))
        yield Sample("shoal_drafts_total", drafted - accepted, (str(place), "rejected"))
        yield Sample("vllm:spec_decode_num_accepted_tokens_per_pos", accepted, (str(place - 1),))
    yield Sample("shoal_sequences_ended_total", counters.finished)
    yield Sample("shoal_sequences_refused_total", counters.refused)


def page_samples(pool: PagePool, prefixes: PrefixCache | None) -> Iterator[Sample]:
    """Pages free, in use and kept for those that begin alike; a kept page that nobody reads is free too."""
    kept = pool.num_published
    yield Sample("shoal_pages", pool.num_free, ("free",))
    yield Sample("shoal_pages", pool.num_pages - pool.num_free, ("used",))
    yield Sample("shoal_pages", kept, ("cached",))
    yield Sample("vllm:kv_cache_usage_perc", 1.0 - pool.num_free / pool.num_pages)
    if prefixes is not None:
        yield Sample("vllm:prefix_cache_queries", prefixes.asked_tokens)
        yield Sample("vllm:prefix_cache_hits", prefixes.hit_tokens)
        yield Sample("shoal_prefix_tokens_total", prefixes.hit_tokens, ("hit",))
        yield Sample("shoal_prefix_tokens_total", prefixes.asked_tokens - prefixes.hit_tokens, ("miss",))


def handover_samples(counters: HandoverCounters, page_bytes: int) -> Iterator[Sample]:
    """Sequences that went to other actors, and the pages that went or came."""
    yield Sample("shoal_handed_sequences_total", counters.sequences, ("moved",))
    yield Sample("shoal_handed_sequences_total", counters.failed, ("kept",))
    for way, pages in (("out", counters.pages_out), ("in", counters.pages_in)):
        yield Sample("shoal_handed_pages_total", pages, (way,))
        yield Sample("shoal_handed_bytes_total", pages * page_bytes, (way,))
    yield Sample("shoal_handover_seconds_total", counters.seconds)


def exchange_samples(exchange: Exchange) -> Iterator[Sample]:
    """Dispatch: the waiting, every edge, the load of the experts."""
    counters = exchange.counters
    yield Sample("shoal_expert_wait_seconds_total", counters.waited_s)
    yield Sample("shoal_retried_pairs_total", counters.retried_pairs)
    yield Sample("shoal_lost_actors_total", counters.lost_actors)
    yield Sample("shoal_parked_seconds_total", counters.parked_s)
    yield Sample("shoal_epoch", exchange.view.epoch)
    for actor, edge in list(exchange.edges.items()):
        yield from _edge_samples(actor, edge)
    yield from _load_samples(exchange.load, exchange.view.first_layer)


def _edge_samples(actor: str, edge: Edge) -> Iterator[Sample]:
    yield Sample("shoal_dispatch_parcels_total", edge.parcels, (actor,))
    yield Sample("shoal_dispatch_pairs_total", edge.pairs, (actor,))
    yield Sample("shoal_dispatch_bytes_total", edge.bytes_out, (actor, "out"))
    yield Sample("shoal_dispatch_bytes_total", edge.bytes_back, (actor, "back"))
    answers = Buckets(ANSWER_BUCKETS_S, tuple(edge.answers), edge.answer_s)
    yield Sample("shoal_dispatch_seconds", answers, (actor,))


def _load_samples(load: ExpertLoad, first_layer: int) -> Iterator[Sample]:
    recent_LE, pairs_L = load.recent(), load.pairs().sum(1)
    for place, balance in enumerate(balances(recent_LE)):
        layer = str(first_layer + place)
        yield Sample("shoal_expert_pairs_total", int(pairs_L[place]), (layer,))
        yield Sample("shoal_expert_load", balance.max, (layer, "max"))
        yield Sample("shoal_expert_load", balance.mean, (layer, "mean"))
        yield Sample("shoal_expert_load", balance.p99, (layer, "p99"))
        yield Sample("shoal_expert_load", balance.cv, (layer, "cv"))
        yield Sample("shoal_expert_imbalance", balance.imbalance, (layer,))
    for place, expert, heat in hottest(recent_LE, HOTTEST):
        yield Sample("shoal_expert_heat", heat, (str(first_layer + place), str(expert)))
