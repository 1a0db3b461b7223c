"""A description that cannot be served is refused with field, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.spec import CONNECTIONS, ShoalSpec, SpecError, connection_limits, tell_connection_limits
from ingress.limits import ConnectionLimits


def test_flags_go_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "shoal.yaml"
    file.write_text("experts: 4\nport: 9000\n")
    spec = ShoalSpec.from_sources(file, {"port": 9001, "attention": None})
    assert (spec.experts, spec.port, spec.attention) == (4, 9001, 1)


def test_who_joins_a_cluster_binds_where_the_node_is_and_keeps_no_standbys() -> None:
    joined = {"address": "10.0.0.1:6379", "api_keys": "keys.json"}
    spec = ShoalSpec.from_sources(None, joined)
    assert (spec.standbys, spec.data_host, spec.host) == (0, "node", "0.0.0.0")
    assert ShoalSpec.from_sources(None, {**joined, "host": "10.0.0.2"}).host == "10.0.0.2"
    with pytest.raises(SpecError, match="standbys is 1"):
        ShoalSpec.from_sources(None, {**joined, "standbys": 1})
    with pytest.raises(SpecError, match="shoal keys add"):
        ShoalSpec.from_sources(None, {"address": "10.0.0.1:6379"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("experts: -1", ["experts", "-1", "greater than or equal to 0"]),
        ("experts: two", ["experts", "'two'", "integer"]),
        ("experts: 2.5", ["experts", "2.5"]),
        ("expert: 2", ["expert ", "not a field", "experts"]),
        ("port: 70000", ["port", "70000"]),
        ("device: tpu", ["device", "tpu", "cpu"]),
        ("dtype: int3", ["dtype", "int3", "float32"]),
        ("micro_batches: 3", ["micro_batches", "3", "auto"]),
        ("threads: 3", ["threads", "3", "less than or equal to 2"]),
        ("device: cuda\nthreads: 2", ["threads is 2", "with device cuda it is 1"]),
        ("experts: 1\nreplicas_per_expert: 2", ["replicas_per_expert", "2", "raise experts"]),
        ("experts: 0\nreplicas_per_expert: 2", ["replicas_per_expert", "experts"]),
        ("- a list", ["holds a list"]),
        ("a: [", ["not YAML"]),
        ("!!python/object/apply:os.system [true]", ["not YAML"]),
    ],
)
def test_a_bad_file_is_refused_in_words(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "shoal.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as caught:
        ShoalSpec.from_sources(file, {})
    for word in [str(file), *words]:
        assert word in str(caught.value)


def test_every_problem_has_its_own_line() -> None:
    with pytest.raises(SpecError) as caught:
        ShoalSpec.from_sources(None, {"experts": -1, "port": 0})
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read"):
        ShoalSpec.from_sources(tmp_path / "nowhere.yaml", {})


@pytest.mark.parametrize(
    ("host", "is_refused"),
    [
        *(("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False)),
        *(
            ("0.0.0.0", True),
            ("::", True),
            ("10.0.0.1", True),
            ("shoal.example", True),
            ("127.0.0.1.example", True),
        ),
    ],
)
def test_only_loopback_may_be_served_without_keys(host: str, is_refused: bool) -> None:
    if is_refused:
        with pytest.raises(SpecError, match="--serve-without-keys"):
            ShoalSpec.from_sources(None, {"host": host})
    else:
        ShoalSpec.from_sources(None, {"host": host})
    ShoalSpec.from_sources(None, {"host": host, "api_keys": "keys.json"})
    ShoalSpec.from_sources(None, {"host": host, "serve_without_keys": True})


def test_the_limits_of_connections_reach_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONNECTIONS, raising=False)
    assert connection_limits() == ConnectionLimits()
    monkeypatch.setenv(CONNECTIONS, "")  # undone at the end, whatever is set meanwhile
    tell_connection_limits(ShoalSpec(max_connections=7, max_connections_per_address=3))
    told = connection_limits()
    assert (told.connections, told.per_address) == (7, 3)


def test_bounds_of_the_autoscaler_are_read_and_those_that_cannot_be_are_refused() -> None:
    spec = ShoalSpec.from_sources(None, {"autoscale": {"experts": "2-6", "attention": "1-3"}})
    assert {kind: (bounds.least, bounds.most) for kind, bounds in spec.bounds.items()} == {
        "expert": (2, 6),
        "attention": (1, 3),
    }
    for wrong in (
        {"experts": "6"},
        {"experts": ""},
        {"experts": "6-2"},
        {"attention": "0-2"},
        {"seats": "1-2"},
    ):
        with pytest.raises(SpecError, match="autoscale"):
            ShoalSpec.from_sources(None, {"autoscale": wrong})
    with pytest.raises(SpecError, match="needs expert actors"):
        ShoalSpec.from_sources(None, {"experts": 0, "autoscale": {"experts": "1-2"}})
    with pytest.raises(SpecError, match="from 2 to"):
        ShoalSpec.from_sources(None, {"replicas_per_expert": 2, "autoscale": {"experts": "1-2"}})


def test_redundant_slots_need_expert_actors() -> None:
    with pytest.raises(SpecError, match="redundant_slots needs expert actors"):
        ShoalSpec.from_sources(None, {"experts": 0, "redundant_slots": 8})
