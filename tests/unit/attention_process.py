"""An attention actor as a process of its own, for tests that kill one.

Arguments: checkpoint directory, actor id, cluster token. Says its port on stdout.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import torch

from actors.attention import AttentionServer, ViewInbox
from tests.shoals import local_engine


def main(directory: str, actor_id: str, token: str) -> None:
    torch.set_num_threads(1)
    server = AttentionServer(
        local_engine(Path(directory)),
        views=ViewInbox(),
        stopping=threading.Event(),
        actor_id=actor_id,
        incarnation=1,
        token=token.encode(),
    )
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
