"""Actors that wait for a seat are the demand that Ray's autoscaler follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def test_who_waits_for_a_seat_is_pending_demand_and_has_a_node_of_its_group_started():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.ray.demand"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["told"] == {"{'shoal-expert': 1.0}": 2, "{'shoal-attention': 1.0}": 1}
    assert answer["starts"] == {"expert": 2, "attention": 1}
