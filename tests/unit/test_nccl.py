"""A pair of two processes moves blocks until one is killed, and the other knows."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest
import torch

from router.nccl import ASKER, Pair, meeting_store
from router.transport import PeerLost

CPU = torch.device("cpu")
PEER = """
import sys, torch
from datetime import timedelta
from torch._C._distributed_c10d import TCPStore
from router.nccl import EXPERT, Pair
store = TCPStore("127.0.0.1", int(sys.argv[1]), None, False, timedelta(seconds=60))
pair = Pair(store, "x", EXPERT, torch.device("cpu"), timeout_s=60)
block = torch.empty(8)
while True:
    pair.receive(block)
    pair.send(block * 2)
"""


def listening() -> set[tuple[str, int]]:
    return {
        (one.laddr.ip, one.laddr.port)
        for one in psutil.Process().net_connections(kind="inet")
        if one.status == psutil.CONN_LISTEN
    }


def test_79_a_store_is_at_its_one_address_only() -> None:
    before = listening()
    store = meeting_store("127.0.0.1")
    assert listening() - before == {("127.0.0.1", store.port)}
    store.set("name", "value")
    assert store.get("name") == b"value"


def test_blocks_come_back_until_the_peer_is_killed_then_the_pair_says_so() -> None:
    """gloo: NCCL needs two GPUs, and says nothing by itself; bench/gpu_faults.py has the deaths there."""
    store = meeting_store("127.0.0.1", wait_s=60)
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(store.port)])
    try:
        pair = Pair(store, "x", ASKER, CPU, timeout_s=60)
        back = torch.empty(8)
        for number in range(3):
            pair.send(torch.arange(8.0) + number)
            pair.receive(back)
            assert torch.equal(back, 2 * (torch.arange(8.0) + number))
        assert not pair.is_aborted
        peer.send_signal(signal.SIGKILL)
        with pytest.raises(PeerLost):
            pair.receive(back)
        assert pair.is_aborted
        with pytest.raises(PeerLost, match="aborted"):
            pair.send(back)
    finally:
        peer.kill()
        peer.wait()
