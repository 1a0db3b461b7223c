"""Metrics: named by the rules, told by those who say so, few enough, and true."""

from __future__ import annotations

import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from actors.counters import HandoverCounters
from actors.exposition import MetricsServer
from actors.metrics import BY_NAME, HOTTEST, METRICS
from actors.samples import exchange_samples, handover_samples
from cluster.snapshot import controller_samples
from ingress.metrics import RequestMetrics
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
    assert {s.name for s in metrics.samples()} == {m.name for m in METRICS if "ingress" in m.roles}
    actor = {"kind": "expert", "state": "serves", "actor_id": "expert-0", "deaths": 1, "recovery_s": 0.5}
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


def test_series_of_the_true_model_on_a_large_cluster_stay_below_two_thousand() -> None:
    actors = [
        ExpertActor(actor_id=ActorId(f"expert-{i}"), incarnation=1, host="", port=0) for i in range(ACTORS)
    ]
    placement = {a.actor_id: range(4 * i, 4 * i + 4) for i, a in enumerate(actors)}
    view = make_view(1, actors, placement, num_experts=EXPERTS, first_layer=3, num_layers=LAYERS)
    exchange = Exchange(LocalTransport(lambda *_: pytest.fail("nobody is asked")), view)
    for layer in range(LAYERS):
        exchange.load.count(layer, np.arange(EXPERTS, dtype=np.int32))
    server = MetricsServer(lambda: exchange_samples(exchange), "127.0.0.1")
    try:
        series = scrape(server.port)
    finally:
        server.close()
    assert len(series["shoal_expert_imbalance"]) == LAYERS
    assert len(series["shoal_expert_heat"]) == HOTTEST
    assert sum(map(len, series.values())) < 2000


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
