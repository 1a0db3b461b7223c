"""The doctor names what is wrong, and a remedy for each."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster import doctor
from cluster.cli import app
from cluster.doctor import Finding
from cluster.spec import ShoalSpec


@pytest.mark.parametrize(
    ("finding", "state", "words"),
    [
        (doctor.python((3, 10)), "bad", "3.11"),
        (doctor.python((3, 13)), "good", ""),
        (doctor.torch(None), "bad", "make setup"),
        (doctor.torch("2.4.1+cpu"), "bad", "later"),
        (doctor.torch("2.13.0+cpu"), "good", ""),
        (doctor.ray("2.61.0"), "bad", "2.60"),
        (doctor.ray(None), "bad", "make setup"),
        (doctor.ray_address({"RAY_ADDRESS": "auto"}), "poor", "unset"),
        (doctor.ray_address({}), "good", ""),
        (doctor.port("203.0.113.7", 8000), "bad", "address of this machine"),
        (doctor.shared_memory(Path("/nowhere")), "bad", "tmpfs"),
        (doctor.open_files(1024, 1024), "bad", "hard limit"),
        (doctor.open_files(1024, 65536), "poor", "ulimit -n"),
        (doctor.open_files(65536, -1), "good", ""),
        (doctor.cores(1), "poor", "--experts 0"),
        (doctor.model(ShoalSpec(model="/nowhere")), "bad", "Hugging Face"),
        (doctor.model(ShoalSpec(cache_tokens=1 << 40)), "bad", "fewer actors"),
    ],
    ids=lambda value: value.name if isinstance(value, Finding) else None,  # not what it measured
)
def test_what_is_found_has_a_state_and_what_is_not_good_a_remedy(finding: Finding, state: str, words: str):
    assert finding.state == state
    assert words in finding.remedy
    assert bool(finding.remedy) == (state != "good")


def test_the_command_ends_badly_where_something_is_bad(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        plain = CliRunner().invoke(app, ["doctor", "--port", port])
        assert plain.exit_code == 1
        assert f"port {port} on 127.0.0.1 cannot be used" in plain.stdout
        assert "-> free it or choose one with --port" in plain.stdout
        told = json.loads(CliRunner().invoke(app, ["doctor", "--port", port, "--json"]).stdout)
    assert [one["name"] for one in told if one["state"] == "bad"] == ["port"]
    assert len(told) == 11


def test_a_blas_that_sums_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.few_rows.blocks_of", lambda inner, _: None if inner == 512 else "known")
    found = doctor.products()
    assert (found.state, "512" in found.text) == ("poor", True)
    monkeypatch.setattr("kernels.few_rows.blocks_of", lambda *_: "known")
    assert doctor.products().state == "good"
