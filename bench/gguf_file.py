"""The GGUF format, version 3: metadata and tensors in one file.

Written tensor by tensor, so that no more than one is held. Knows nothing of models: names, keys and layouts
are bench/gguf_layout.py's.

Specification: docs/gguf.md of github.com/ggml-org/ggml.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from model.names import Shape

VERSION = 3
ALIGNMENT = 32  # of the tensors' bytes, which is the format's default
TYPES: Mapping[torch.dtype, int] = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
UINT32, FLOAT32, BOOL, STRING = 4, 6, 7, 8

Value = bool | int | float | str
Entry = tuple[str, Shape, torch.dtype]


class GgufWriter:
    """Takes the tensors in the order in which they were declared."""

    def __init__(self, file: BinaryIO, entries: Sequence[Entry]) -> None:
        self._file = file
        self._left = list(reversed(entries))

    def write(self, name: str, tensor: Tensor) -> None:
        declared = self._left.pop() if self._left else None
        assert (name, tuple(tensor.shape), tensor.dtype) == declared, f"{name}: declared was {declared}"
        self._file.write(tensor.contiguous().view(torch.uint8).numpy().data)
        _pad(self._file)

    @property
    def num_left(self) -> int:
        return len(self._left)


@contextmanager
def gguf(path: Path, metadata: Mapping[str, Value], entries: Sequence[Entry]) -> Iterator[GgufWriter]:
    """A new file; every tensor of `entries` must be written within the block."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", VERSION, len(entries), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + _value(value))
        offset = 0
        for name, shape, dtype in entries:
            dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))  # the innermost comes first
            file.write(_string(name) + dims + struct.pack("<IQ", TYPES[dtype], offset))
            offset += _aligned(torch.Size(shape).numel() * dtype.itemsize)
        _pad(file)
        writer = GgufWriter(file, entries)
        yield writer
    assert not writer.num_left, f"{writer.num_left} declared tensors were not written"


def _value(value: Value) -> bytes:
    if isinstance(value, bool):  # before int, which it is, too
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    return struct.pack("<I", STRING) + _string(value)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    here = file.tell()
    file.write(bytes(_aligned(here) - here))
