"""Weights out of shards, tensor by tensor.

Reads only the bytes it is asked for; counts them, checks them and tells how far it is. Knows nothing of
directories and indexes: where a tensor lies it is told (model/checkpoint.py).

Errors: CheckpointError (model/shards.py).
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kernels.fp8 import dequantize_blocks
from model.shards import FP8, READABLE, StoredTensor, naming, refusal

CHUNK_BYTES = 32 << 20  # progress is told, and the checksum taken, chunk by chunk

DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    FP8: torch.float8_e4m3fn,
}


class Catalogue(Protocol):
    """Where each tensor lies; raises CheckpointError for one that is missing or cannot be read."""

    def tensor(self, name: str) -> StoredTensor: ...

    def scale_of(self, tensor: StoredTensor) -> StoredTensor | None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a load is."""

    bytes_read: int
    bytes_total: int
    seconds: float

    @property
    def gb_per_s(self) -> float:
        return self.bytes_read / self.seconds / 1e9 if self.seconds > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the rate so far; None before the first byte."""
        left = max(0, self.bytes_total - self.bytes_read)
        return self.seconds * left / self.bytes_read if self.bytes_read else None


class WeightReader:
    """Reads tensors one by one, counting bytes and checksums; several threads may share it."""

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        block: tuple[int, int] | None,
        bytes_total: int,
        progress: Callable[[Progress], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._catalogue = catalogue
        self._block = block
        self._bytes_total = bytes_total
        self._progress = progress
        self._clock = clock
        self._started_s = clock()
        self._crcs: dict[str, int] = {}
        self._counting = threading.Lock()
        self.bytes_read = 0

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`, de-quantised if it is stored as FP8."""
        values, scales = self.read_raw(name), self.read_scales(name)
        if scales is None:
            return values.to(dtype)
        assert self._block is not None, "scale_of refuses FP8 without a block size"
        return dequantize_blocks(values, scales, self._block, dtype)

    def read_raw(self, name: str) -> Tensor:
        """The tensor as stored."""
        tensor = self._catalogue.tensor(name)
        whole = torch.empty(tensor.num_bytes, dtype=torch.uint8)
        for _ in self.pieces(name, torch.split(whole, CHUNK_BYTES)):
            pass
        return whole.view(DTYPES[tensor.dtype]).reshape(tensor.shape)

    def read_scales(self, name: str) -> Tensor | None:
        """fp32, one a block; None of a tensor that is not FP8."""
        scale = self._catalogue.scale_of(self._catalogue.tensor(name))
        if scale is None:
            return None
        scales = self.read_raw(scale.name).float()
        if not bool(torch.isfinite(scales).all()):
            raise refusal(scale.file, scale.name, "holds a scale that is NaN or infinite")
        return scales

    def checksum(self) -> str:
        """Of everything read so far, whatever the order."""
        lines = sorted(f"{name}:{crc:08x}\n" for name, crc in self._crcs.items())
        return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()

    def stored(self, name: str) -> StoredTensor:
        """Where it lies and what it is."""
        return self._catalogue.tensor(name)

    def pieces(self, name: str, rooms: Iterable[Tensor]) -> Iterator[Tensor]:
        """The tensor's bytes in order: `rooms` (uint8, on the CPU) filled, the last as far as needed."""
        tensor = self._catalogue.tensor(name)
        file, left, crc = tensor.file, tensor.num_bytes, 0
        if tensor.dtype not in READABLE:
            what = f"has dtype {tensor.dtype}: expected one of {', '.join(READABLE)}"
            raise refusal(file, name, what)
        with naming(file, name), file.open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size != tensor.file_bytes:
                raise refusal(file, name, "cannot be read: the file changed since its header was read")
            opened.seek(tensor.offset)
            for room in rooms:
                piece = room[:left]
                crc = self._fill(piece.numpy().data, opened, tensor, crc)
                left -= len(piece)
                yield piece
                if not left:
                    break
        self._crcs[name] = crc

    def _fill(self, buffer: memoryview, file: io.FileIO, tensor: StoredTensor, crc: int) -> int:
        """Fill `buffer` from `file`; returns the CRC32 so far."""
        filled = 0
        while filled < len(buffer):
            chunk = buffer[filled:]
            count = file.readinto(chunk)
            if not count:
                done = file.tell() - tensor.offset
                raise refusal(tensor.file, tensor.name, f"ends after {done} of {tensor.num_bytes} bytes")
            crc = zlib.crc32(chunk[:count], crc)
            filled += count
            self._count(count)
        return crc

    def _count(self, num_bytes: int) -> None:
        with self._counting:
            self.bytes_read += num_bytes
            if self._progress is not None:
                total, seconds = max(self._bytes_total, self.bytes_read), self._clock() - self._started_s
                self._progress(Progress(bytes_read=self.bytes_read, bytes_total=total, seconds=seconds))
