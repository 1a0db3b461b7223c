"""A checkpoint directory, written tensor by tensor.

Sharded safetensors and their index, in the layout of the released models. The index is written last, so that
a directory whose writing was cut short does not open as a checkpoint. Knows nothing of what tensors hold.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.blocks import scale_shape
from model.config import ModelConfig
from model.names import Shape, is_fp8_linear, mtp_copies, mtp_tensors, required_tensors
from model.reader import DTYPES

Stored = tuple[Shape, torch.dtype]

SCALE = "_scale_inv"
INDEX = "model.safetensors.index.json"
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
SLACK_BYTES = 64 << 20  # headers, index and tokenizer, and a disk that is not quite full


def stored_tensors(config: ModelConfig, dtype: torch.dtype) -> dict[str, Stored]:
    """Shape and dtype of every tensor of the files, in the order of the layers. dtype: of the wide ones."""
    shapes = required_tensors(config) | mtp_tensors(config)
    shapes |= {copy: shapes[name] for copy, name in mtp_copies(config).items()}
    stored: dict[str, Stored] = {}
    for name, shape in shapes.items():
        if config.fp8_block is not None and is_fp8_linear(name):
            stored[name] = (shape, torch.float8_e4m3fn)
            stored[name + SCALE] = (scale_shape(shape, config.fp8_block), torch.float32)
        else:
            stored[name] = (shape, torch.float32 if name.endswith("correction_bias") else dtype)
    return stored


def write_checkpoint(
    directory: Path,
    raw_config: Mapping[str, Any],
    stored: Mapping[str, Stored],
    make: Callable[[str], Tensor],
    *,
    shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
    threads: int = 1,
) -> None:
    """`make` gives each tensor, `threads` at a time; `progress` is told (bytes written, bytes in all).

    Raises ValueError where the disk has no room for it all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / INDEX).unlink(missing_ok=True)
    shards = _split(stored, shard_bytes)
    total, written, weight_map = sum(map(_size, stored.values())), 0, dict[str, str]()
    _check_room(directory, total)
    write_json(directory / "config.json", raw_config)
    with ThreadPoolExecutor(threads) as pool:
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            with (directory / file).open("wb") as opened:
                opened.write(_header({name: stored[name] for name in names}))
                for tensor in _made(pool, make, names, threads):
                    written += opened.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
                    if progress is not None:
                        progress(written, total)
            weight_map |= dict.fromkeys(names, file)
    write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_json(path: Path, raw: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def _made(
    pool: ThreadPoolExecutor, make: Callable[[str], Tensor], names: Sequence[str], threads: int
) -> Iterator[Tensor]:
    """In order, and no more than `threads` at a time in memory."""
    for first in range(0, len(names), threads):
        yield from pool.map(make, names[first : first + threads])


def _check_room(directory: Path, total: int) -> None:
    free = shutil.disk_usage(directory).free
    if total + SLACK_BYTES > free:
        raise ValueError(
            f"{directory} has {free:,} bytes free: the checkpoint takes {total + SLACK_BYTES:,}; "
            "choose another disk or fewer layers"
        )


def _split(stored: Mapping[str, Stored], shard_bytes: int) -> list[list[str]]:
    """Names per shard; a weight and its scales may be parted, as in the released files."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, one in stored.items():
        if shards[-1] and _size(one) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= _size(one)
    widest_first = [sorted(shard, key=lambda name: -stored[name][1].itemsize) for shard in shards]
    return widest_first  # so that every tensor is aligned


def _header(stored: Mapping[str, Stored]) -> bytes:
    """Of a safetensors file with these tensors, end to end."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, one in stored.items():
        end = offset + _size(one)
        header[name] = {"dtype": NAME_OF[one[1]], "shape": list(one[0]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _size(stored: Stored) -> int:
    shape, dtype = stored
    return math.prod(shape) * dtype.itemsize
