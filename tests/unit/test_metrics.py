"""Metrics: named by the rules, told by those who say so, few enough, and true."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from actors.counters import HandoverCounters
from actors.exposition import MetricsServer
from actors.metrics import BY_NAME, HOTTEST, METRICS, Buckets, Sample
from actors.samples import handover_samples
from cluster.snapshot import controller_samples
from ingress.metrics import RequestMetrics
from ingress.tenants import MOST, OTHERS
from model.sampling import Sampling
from router.exchange import Exchange
from router.load import SLICE_S, WINDOW_S, Balance, ExpertLoad, balances, hottest
from router.local import LocalTransport
from router.view import ActorId, ExpertActor, make_view
from tests.shoals import generate, local_engine

GREEDY = Sampling(max_tokens=8, temperature=0.0, ignore_eos=True)
LAYERS, EXPERTS, ACTORS = 61 - 3, 256, 64  # DeepSeek-V3.2's MoE layers, on a large cluster


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def scrape(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
    request.add_header("accept", "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5")
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_names_follow_prometheus_rules() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        is_ours = not metric.name.startswith("vllm:")  # theirs are as they are
        assert re.fullmatch(r"(shoal_|vllm:)[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (is_ours and metric.kind == "counter"), metric.name
        assert all(
            re.fullmatch(r"[a-z_]+", label) and label not in ("le", "actor", "role")
            for label in metric.labels
        )
        assert metric.help.endswith(".")
        assert metric.roles


def test_the_docs_list_every_metric_with_what_it_is() -> None:
    page = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `((?:shoal_|vllm:)[a-z_]+)`.* \| ([a-z]+) \| ([a-z_, -]+) \| ([a-z, ]+): (.*) \|$", page, re.M
    )
    assert rows == [(m.name, m.kind, ", ".join(m.labels) or "-", ", ".join(m.roles), m.help) for m in METRICS]


def test_an_attention_actor_tells_every_metric_of_its_role_and_no_other(tiny_v32: Path) -> None:
    engine = local_engine(tiny_v32, draft_tokens=1)
    generate(engine, [list(range(40))], GREEDY)
    samples = [*engine.samples(), *handover_samples(HandoverCounters(), engine.lending.page_bytes)]
    assert {s.name for s in samples} == {metric.name for metric in METRICS if "attention" in metric.roles}
    for sample in samples:
        assert len(sample.labels) == len(BY_NAME[sample.name].labels), sample


def test_pairs_of_an_engine_are_its_tokens_times_the_experts_of_each(tiny_v32: Path) -> None:
    engine = local_engine(tiny_v32)
    generate(engine, [list(range(40))], GREEDY)
    pairs_LE = engine.expert_pairs()
    computed = engine.counters.prefill_tokens + engine.counters.decode_tokens
    assert (pairs_LE.sum(1) == 8 * computed).all()


def test_an_ingress_and_a_controller_tell_every_metric_of_their_roles() -> None:
    metrics = RequestMetrics()
    watch = metrics.watch(7)
    watch.delivered(1)
    watch.delivered(2)
    watch.end("stop")
    metrics.answered(200, "somebody")
    assert {s.name for s in metrics.samples()} == {m.name for m in METRICS if "ingress" in m.roles}
    actor = {
        "kind": "expert",
        "state": "serves",
        "actor_id": "expert-0",
        "deaths": 1,
        "recovery_s": 0.5,
        "detection_s": 0.1,
    }
    actor["faults"] = {"hangs": 1}
    balance = {"before": 1.5, "after": 1.1, "slots_written": 7}
    seen = {"actors": [actor], "epoch": 3, "balance": balance, "decisions": []}
    told = {sample.name for sample in controller_samples(seen)}
    assert told == {metric.name for metric in METRICS if "controller" in metric.roles}


def test_a_choice_is_counted_once_however_it_ends() -> None:
    metrics = RequestMetrics()
    for finish in ("stop", None):
        watch = metrics.watch(3)
        watch.delivered(0)  # an end without tokens is no delivery
        watch.delivered(2)
        watch.end(finish)
    values = {(s.name, s.labels): s.value for s in metrics.samples()}
    assert values["shoal_requests_total", ("stop",)] == values["shoal_requests_total", ("cut",)] == 1
    assert values["shoal_open_sequences", ()] == 0
    assert values["shoal_generated_tokens_total", ()] == 4
    assert sum(metrics.first_s.buckets.counts) == sum(metrics.whole_s.buckets.counts) == 2
    assert sum(metrics.gap_s.buckets.counts) == 0


def series_of(read: Callable[[], Iterable[Sample]]) -> dict[str, int]:
    """How many series a scrape has, by name."""
    server = MetricsServer(read, "127.0.0.1")
    try:
        return {name: len(found) for name, found in scrape(server.port).items()}
    finally:
        server.close()


def large_exchange() -> Exchange:
    actors = [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=1, host="", port=0) for i in range(ACTORS)
    ]
    placement = {a.actor_id: range(4 * i, 4 * i + 4) for i, a in enumerate(actors)}
    view = make_view(1, actors, placement, num_experts=EXPERTS, first_layer=3, num_layers=LAYERS)
    exchange = Exchange(LocalTransport(lambda *_: pytest.fail("nobody is asked")), view)
    for layer in range(LAYERS):
        exchange.load.count(layer, np.arange(EXPERTS, dtype=np.int32))
    return exchange


def test_series_of_an_attention_actor_of_the_true_model_stay_below_two_thousand(tiny_v32: Path) -> None:
    """All that it tells: its engine's, with the exchange of a large cluster in the place of its own."""
    engine, exchange = local_engine(tiny_v32, draft_tokens=1), large_exchange()
    generate(engine, [list(range(40))], GREEDY)
    engine._runner.exchange = exchange  # type: ignore[misc]
    for part in ("plan", "listen", "idle", "tell"):
        engine.counters.laps.lap(part)

    def read() -> Iterator[Sample]:
        yield from engine.samples()
        yield from handover_samples(HandoverCounters(), 1)

    series = series_of(read)
    assert series["shoal_expert_imbalance"] == LAYERS
    assert series["shoal_expert_heat"] == HOTTEST
    assert 1000 < sum(series.values()) < 2000


def test_series_of_an_ingress_stay_few_whatever_its_clients_call_themselves() -> None:
    metrics = RequestMetrics()
    for number in range(10 * MOST):
        watch = metrics.watch(7, tenant=f"tenant-{number}")
        watch.delivered(3)
        watch.end("stop")
        metrics.answered(429 if number % 2 else 200, f"tenant-{number}")
    for status in range(400, 500):
        metrics.answered(status, None)
    series = series_of(metrics.samples)
    assert series["shoal_tenant_requests_total"] == MOST + 1
    assert sum(series.values()) < 1000
    values = {(s.name, s.labels): s.value for s in metrics.samples()}
    assert values["shoal_tenant_requests_total", (OTHERS,)] == 9 * MOST, "nobody is lost"
    assert values["shoal_tenant_refused_total", (OTHERS,)] == 4.5 * MOST
    assert values["shoal_tenant_tokens_total", (OTHERS, "generated")] == 27 * MOST


def test_series_of_a_controller_of_a_large_cluster_stay_below_two_thousand() -> None:
    actors = [
        {
            "kind": kind,
            "state": "serves",
            "actor_id": f"{kind}-{number}",
            "deaths": 1,
            "recovery_s": 0.5,
            "detection_s": 0.1,
            "faults": {"died": 1},
        }
        for kind in ("attention", "expert")
        for number in range(4 * ACTORS)
    ]
    balance = {"before": 1.5, "after": 1.1, "slots_written": 7}
    seen = {"actors": actors, "epoch": 3, "balance": balance, "decisions": []}
    assert sum(series_of(lambda: controller_samples(seen)).values()) < 2000


def test_a_choice_is_told_by_who_asked_how_long_it_waited_and_what_it_took_per_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [10.0]
    monkeypatch.setattr("ingress.metrics.time.monotonic", lambda: now_s[0])
    metrics = RequestMetrics()
    watch = metrics.watch(64, sequence_id="cmpl-1-0", tenant="ann")
    watch.sent("attention-1")
    now_s[0] = 12.0
    watch.delivered(1, num_cached=32)
    now_s[0] = 16.0
    watch.delivered(8, work={"queue_s": 1.5, "experts_s": 0.25, "steps": 9, "restarts": 0})
    watch.end("length")
    values = {(s.name, s.labels): s.value for s in metrics.samples()}
    assert values["shoal_tenant_tokens_total", ("ann", "cached")] == 32
    assert values["shoal_tenant_queue_seconds_total", ("ann",)] == 1.5
    queue, per_token = values["shoal_queue_seconds", ()], values["shoal_token_seconds", ()]
    assert isinstance(queue, Buckets) and isinstance(per_token, Buckets)
    assert (queue.sum, sum(queue.counts)) == (1.5, 1)
    assert (per_token.sum, sum(per_token.counts)) == (4.0 / 8, 1)
    [took] = metrics.take_recent()
    assert took.journey() == {
        "id": "cmpl-1-0",
        "tenant": "ann",
        "prompt_tokens": 64,
        "generated_tokens": 9,
        "finish": "length",
        "actors": ["attention-1"],
        "queue_s": 1.5,
        "first_token_s": 2.0,
        "experts_s": 0.25,
        "whole_s": 6.0,
    }
    assert metrics.take_recent() == []


def test_what_is_scraped_is_what_was_counted_also_under_vllms_names() -> None:
    metrics = RequestMetrics()
    watch = metrics.watch(11)
    watch.delivered(1)
    watch.delivered(5)
    server = MetricsServer(metrics.samples, "127.0.0.1")
    try:
        series = scrape(server.port)
    finally:
        server.close()
    assert series["shoal_prompt_tokens_total"] == series["vllm:prompt_tokens_total"] == [({}, 11.0)]
    assert series["vllm:num_requests_running"] == [({}, 1.0)]
    bounds = [value for _, value in series["shoal_first_token_seconds_bucket"]]
    assert bounds == sorted(bounds)
    assert series["shoal_first_token_seconds_count"] == [({}, 1.0)]
    assert series["process_resident_memory_bytes"][0][1] > 0


@given(st.lists(st.tuples(st.floats(0.1, 30.0), st.integers(0, 5)), max_size=60))
@example([(1, 1), (1, 0), (2, 0), (27, 0), (5, 0), (27, 0), (27, 0), (4, 0)])  # no step cut the window again
def test_the_window_holds_the_last_minute_to_within_a_slice(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    load = ExpertLoad(1, 4, clock)
    counted: list[tuple[float, int]] = []
    for pause_s, pairs in steps:
        clock.now_s += pause_s
        load.mark()
        load.count(0, np.zeros(pairs, dtype=np.int32))
        counted.append((clock.now_s, pairs))
    recent = int(load.recent().sum())
    longest_s = max((pause_s for pause_s, _ in steps), default=0.0)
    slack_s = SLICE_S + longest_s  # slices are cut only when a step asks
    assert recent >= sum(n for at_s, n in counted if at_s > clock.now_s - WINDOW_S + slack_s)
    assert recent <= sum(n for at_s, n in counted if at_s >= clock.now_s - WINDOW_S - slack_s)


def test_a_minute_without_a_step_has_no_load() -> None:
    clock = Clock()
    load = ExpertLoad(1, 4, clock)
    load.mark()
    load.count(0, np.zeros(7, dtype=np.int32))
    assert load.recent().sum() == 7
    clock.now_s += WINDOW_S + 1
    assert load.recent().sum() == 0
    load.mark()
    load.count(0, np.zeros(2, dtype=np.int32))
    assert load.recent().sum() == 2


def test_balance_and_heat_are_of_each_layer_alone() -> None:
    pairs_LE = np.array([[1, 1, 1, 5], [100, 100, 100, 100], [0, 0, 0, 0]])
    uneven, even, idle = balances(pairs_LE)
    assert (uneven.max, uneven.mean, uneven.imbalance) == (5.0, 2.0, 2.5)
    assert (even.cv, even.imbalance) == (0.0, 1.0)
    assert idle == Balance(max=0.0, mean=0.0, p99=0.0, cv=0.0)
    assert idle.imbalance == 0.0
    assert hottest(pairs_LE, 2) == [(0, 3, 2.5), (1, 0, 1.0)]
    assert hottest(np.zeros((2, 2), dtype=np.int64), 3) == []
