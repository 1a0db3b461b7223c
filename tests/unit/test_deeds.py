"""What chaos does to files: within its block, where it may, and undone."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster.deeds import damaged
from cluster.small_disk import HOME, filled, small_disk


def test_weights_are_damaged_within_the_block_and_their_header_never(tmp_path: Path):
    shard, header = tmp_path / "model.safetensors", b"{}" + b" " * 98
    whole = (len(header)).to_bytes(8, "little") + header + bytes(5000)
    shard.write_bytes(whole)
    opened = shard.open("rb")
    with damaged(tmp_path):
        spoilt = shard.read_bytes()
        assert spoilt[:108] == whole[:108] and len(spoilt) == len(whole)
        assert sum(a != b for a, b in zip(spoilt, whole, strict=True)) == 5
        assert opened.read() == whole, "who has it open reads on"
    opened.close()
    assert shard.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [shard]


def test_a_disk_that_others_use_is_not_filled(tmp_path: Path):
    with pytest.raises(OSError, match="is no file system of its own"), filled(tmp_path):
        raise AssertionError("was filled")
    assert list(tmp_path.iterdir()) == []


def test_a_small_disk_is_full_within_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(HOME, "elsewhere")
    disk = tmp_path / "disk"
    with small_disk(disk):
        if not disk.is_mount():
            pytest.skip("this user may not mount")
        assert os.environ[HOME] == str(disk)
        with filled(disk), pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk / "log").write_bytes(b"x")
        (disk / "log").write_bytes(b"x")
    assert os.environ[HOME] == "elsewhere"
    assert not disk.is_mount()
