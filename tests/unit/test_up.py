"""`shoal up`: what it makes of its flags, and when it refuses."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cli_up import start_words
from cluster.hosts import seat_for


def test_a_host_tells_ray_its_seats_and_offers_it_nothing_else() -> None:
    command = start_words("10.0.0.1:6379", {"expert": 2, "attention": 1}, "10.0.0.2", 6379)
    assert command[:2] == ["start", "--address=10.0.0.1:6379"]
    [resources] = [word for word in command if word.startswith("--resources=")]
    assert json.loads(resources.removeprefix("--resources=")) == {
        seat_for("expert"): 2,
        seat_for("attention"): 1,
    }
    assert {"--num-cpus=0", "--node-ip-address=10.0.0.2", "--block"} <= {*command}


def test_a_head_begins_a_cluster_and_shows_no_dashboard() -> None:
    command = start_words(None, {}, None, 7000)
    assert {"--head", "--port=7000", "--include-dashboard=false"} <= {*command}
    assert not [word for word in command if word.startswith(("--address", "--node-ip"))]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--head"),
        (["--head", "--join=10.0.0.1:6379"], "--head"),
        (["--head", "--seat=expert"], "seat is 'expert'"),
        (["--head", "--seat=gpu=1"], "seat is 'gpu=1'"),
        (["--head", "--seat=expert=1", "--seat=expert=2"], "each once"),
        (["--head"], "RAY_AUTH_TOKEN"),
    ],
)
def test_it_refuses_in_words(flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    done = CliRunner().invoke(app, ["up", *flags])
    assert done.exit_code == 1
    assert words in " ".join(done.output.split())
