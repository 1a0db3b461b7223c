"""The checkpoint that comes with Shoal.

It lies in demo/checkpoint beside this package, in a checkout as in an installed wheel. Read only, and no
network. Knows nothing of how it was made (demo/) and of what a checkpoint must hold (model/checkpoint.py).

Errors: CheckpointError (model/shards.py).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from model.shards import inside, json_object, naming, refusal

NAME = "shoal-demo"
RECORD = "training.json"
REMEDY = "restore it (git checkout, or install shoal again) or name another checkpoint directory"


def embedded_directory() -> Path:
    """Where it lies. A path, not an import: demo is the floor above this one."""
    return Path(__file__).resolve().parents[1] / "demo" / "checkpoint"


def check_embedded(directory: Path) -> None:
    """Raise CheckpointError, one line, at the first file that is not the one that training wrote."""
    for name, recorded in sorted(_recorded(directory).items()):
        found = _sha256(_inside(directory, name))
        if found != recorded:
            what = f"is damaged: its sha256 is {found[:12]}..., {RECORD} says {recorded[:12]}...; {REMEDY}"
            raise refusal(directory / name, None, what)


def _recorded(directory: Path) -> dict[str, str]:
    """sha256 by file name."""
    file = _inside(directory, RECORD)
    with naming(file, None):
        record = json_object(file.read_bytes(), file)
    hashes = record.get("sha256")
    if not isinstance(hashes, dict) or not hashes or not all(isinstance(one, str) for one in hashes.values()):
        raise refusal(file, None, f"is damaged: it has no sha256 of each file; {REMEDY}")
    return hashes


def _inside(directory: Path, name: str) -> Path:
    if not (directory / name).exists():
        raise refusal(directory / name, None, f"is missing; {REMEDY}")
    return inside(directory, name, tensor=None)


def _sha256(file: Path) -> str:
    with naming(file, None), file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
