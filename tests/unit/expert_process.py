"""An expert actor as a process of its own, for tests that kill one: python -m tests.unit.expert_process.

Arguments: checkpoint directory, actor id, cluster token, expert ids, and a fault point to be armed, if any:
POINT@PASSES. Says its port on stdout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from actors.expert import ExpertServer
from model.checkpoint import Checkpoint
from tests.shoals import experts_of


def main(directory: str, actor_id: str, token: str, *experts: str) -> None:
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(Path(directory))
    held = experts_of(checkpoint, [int(e) for e in experts if "@" not in e])
    server = ExpertServer(checkpoint.config, held, actor_id=actor_id, incarnation=1, token=token.encode())
    for point, _, passes in (e.partition("@") for e in experts if "@" in e):
        server.arm(point, int(passes))
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
