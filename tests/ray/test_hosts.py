"""Several hosts: whatever happens to the network between them, no request fails and no token differs.

Linux, root, minutes: `make hosts`. SHOAL_REPORT names the file whose table "Between hosts" is written anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.embedded import NAME, embedded_directory
from cluster.faults import Fault
from cluster.reliability import BETWEEN_HOSTS, write_report
from model.checkpoint import Checkpoint
from tests.ray.hosts import Hosts, are_possible
from tests.ray.network_faults import FAULTS
from tests.ray.several_hosts import SeveralHosts

if TYPE_CHECKING:  # late in what uses them: they import Ray, which reads its settings only once in a process
    from cluster.chaos import Load, Outcome, Served

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(900)]
STREAMS, SEED = 4, 3


@dataclass(frozen=True)
class Stage:
    """What all faults meet, one after another."""

    cluster: SeveralHosts
    hosts: Hosts
    served: Served
    load: Load
    outcomes: list[Outcome]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    from cluster.chaos import Served, make_load

    if not are_possible():
        pytest.skip("network, process and mount namespaces need root")
    hosts = Hosts(tmp_path_factory.mktemp("logs"))
    try:
        cluster = SeveralHosts(hosts, tmp_path_factory.mktemp("hosts"))
        vocab_size = Checkpoint.open(embedded_directory()).config.vocab_size
        served = Served(cluster=cluster, model=NAME, vocab_size=vocab_size)  # type: ignore[arg-type]
        load = hosts.visit(lambda: make_load(served, STREAMS, SEED))
        yield (made := Stage(cluster, hosts, served, load, []))
        if (report := os.environ.get("SHOAL_REPORT")) and len(made.outcomes) == len(FAULTS):
            heading = f"the embedded model, {STREAMS} concurrent streams, {os.cpu_count()} cores, seed {SEED}"
            write_report(Path(report), made.outcomes, heading, BETWEEN_HOSTS)
    finally:
        hosts.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_no_request_fails_and_no_token_differs(stage: Stage, fault: Fault) -> None:
    from cluster.chaos import try_fault

    stage.cluster.repair()
    outcome = stage.hosts.visit(lambda: try_fault(stage.served, fault, stage.load, lambda _: None))
    stage.outcomes.append(outcome)
    print(outcome)  # noqa: T201 - with -s, what came of it
    assert outcome.is_as_promised, f"{outcome}\n{stage.hosts.logs()}"
