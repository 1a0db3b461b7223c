"""A directory whose weights are noise, made where they are needed.

It holds config.json and a tokenizer, and instead of weights a file with their seed. Knows nothing of how
noise is made (model/noise.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from model.shards import json_object, naming, refusal

FILE = "random.json"


def write_mark(directory: Path, raw_config: Mapping[str, Any], seed: int) -> None:
    """Make `directory` one of these."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw_config, indent=2) + "\n", encoding="utf-8")
    (directory / FILE).write_text(json.dumps({"seed": seed}) + "\n", encoding="utf-8")


def read_mark(directory: Path, draft_tokens: int) -> tuple[ModelConfig, int] | None:
    """(config with the layers that serving makes, seed); None of a directory of weights."""
    file = directory / FILE
    if not file.exists():
        return None
    with naming(file, None):
        seed = json_object(file.read_bytes(), file).get("seed")
    if type(seed) is not int:
        raise refusal(file, None, "has no integer seed")
    config = ModelConfig.from_file(directory / "config.json")
    return replace(config, num_mtp_layers=min(1, config.num_mtp_layers, draft_tokens)), seed
