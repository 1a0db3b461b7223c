"""The header of a safetensors file, read strictly.

What it announces must be what the file holds, end to end, and the file must lie where the checkpoint does:
both may be damaged or hostile. Knows nothing of which tensors a model needs, and reads no weight.

Errors: CheckpointError.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from model.names import Shape

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
MAX_DIMS = 8

DTYPE_BYTES: Mapping[str, int] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}
FP8 = "F8_E4M3"
WIDE = ("F32", "BF16", "F16")
READABLE = (*WIDE, FP8)  # what a weight may be stored as


class CheckpointError(ValueError):
    """The checkpoint is damaged, hostile or of another shape; one line that names file and tensor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `num_bytes` at `offset` of `file`, which was `file_bytes` long."""

    name: str
    dtype: str
    shape: Shape
    file: Path
    offset: int
    num_bytes: int
    file_bytes: int


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, which must lie end to end and fill it; raises CheckpointError."""
    with naming(file, None), file.open("rb") as opened:
        file_bytes = os.fstat(opened.fileno()).st_size
        header_bytes = int.from_bytes(opened.read(8), "little")
        if not 2 <= header_bytes <= min(MAX_HEADER_BYTES, file_bytes - 8):
            raise refusal(file, None, f"has {file_bytes} bytes but announces a header of {header_bytes}")
        raw = json_object(opened.read(header_bytes), file)
    metadata = raw.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise refusal(file, "__metadata__", "is not an object of strings")
    start = 8 + header_bytes
    tensors = {name: _stored(file, name, entry, start, file_bytes) for name, entry in raw.items()}
    _check_layout(file, tensors.values(), start, file_bytes)
    return tensors


def inside(directory: Path, name: str, *, tensor: str | None) -> Path:
    """`name` in `directory`, a regular file that no path trick or symlink moves elsewhere.

    The one link allowed out is that of the Hugging Face cache, snapshots/REVISION/x -> ../../blobs/HASH.
    """
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise refusal(
            directory, tensor, f"lies in {name!r:.80}: shards are files inside the checkpoint directory"
        )
    path = directory / name
    try:
        root, real = directory.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # a symlink loop; a name that is not UTF-8
        what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened: {error!r:.120}"
        raise refusal(path, tensor, what if tensor is None else f"the shard that holds it {what}") from None
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    if not any(real.is_relative_to(allowed) for allowed in (root, *blobs)):
        raise refusal(path, tensor, "is a symlink out of the checkpoint directory")
    if not real.is_file():
        raise refusal(path, tensor, "is not a regular file")
    return path


def json_object(data: bytes, file: Path) -> dict[str, Any]:
    """`data`, read from `file`, as a JSON object in which no name is there twice; raises CheckpointError."""
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refusal(file, None, f"is not the JSON it should be: {error!s:.200}") from None
    if not isinstance(raw, dict) or not data.startswith(b"{"):
        raise refusal(file, None, "does not start with a JSON object")
    return raw


@contextmanager
def naming(file: Path, tensor: str | None) -> Iterator[None]:
    """Turns an I/O error into one that says what was being read."""
    try:
        yield
    except OSError as error:
        raise refusal(file, tensor, f"cannot be read: {error.strerror or error}") from None


def refusal(file: Path, tensor: str | None, what: str) -> CheckpointError:
    """The error, not raised here, that begins with the file and the tensor if there is one."""
    where = f"{file}: " if tensor is None else f"{file}: tensor {tensor[:120]} "
    return CheckpointError(one_line(where + what))


def one_line(text: str) -> str:
    """Names come from the file and may hold anything."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _stored(file: Path, name: str, raw: Any, start: int, file_bytes: int) -> StoredTensor:
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise refusal(file, name, "is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refusal(file, name, f"has a dtype that this build does not know: {reprlib.repr(dtype)}")
    if not (_counts(shape) and len(shape) <= MAX_DIMS):
        raise refusal(file, name, f"has a shape that is not a list of sizes: {reprlib.repr(shape)}")
    if not (_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise refusal(file, name, f"has data_offsets that are not [begin, end]: {reprlib.repr(offsets)}")
    begin, end = offsets
    if start + end > file_bytes:
        raise refusal(file, name, f"ends at byte {start + end} of {file_bytes}: the file is truncated")
    if math.prod(shape) * DTYPE_BYTES[dtype] != end - begin:
        raise refusal(file, name, f"is {dtype} {shape} but holds {end - begin} bytes")
    return StoredTensor(
        name=name,
        dtype=dtype,
        shape=tuple(shape),
        file=file,
        offset=start + begin,
        num_bytes=end - begin,
        file_bytes=file_bytes,
    )


def _counts(raw: Any) -> bool:
    return isinstance(raw, list) and all(type(one) is int and 0 <= one < 1 << 63 for one in raw)


def _check_layout(file: Path, tensors: Iterable[StoredTensor], start: int, file_bytes: int) -> None:
    """Data must be covered once, with no hole to hide something in."""
    reached, last = start, "__metadata__"
    for tensor in sorted(tensors, key=lambda one: (one.offset, one.num_bytes)):
        if tensor.offset != reached:
            fault = "overlaps" if tensor.offset < reached else "leaves a hole after"
            raise refusal(file, tensor.name, f"{fault} {last!r:.80}")
        reached, last = tensor.offset + tensor.num_bytes, tensor.name
    if reached != file_bytes:
        raise refusal(file, last, f"ends at byte {reached}, but the file has {file_bytes}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"tensor {name[:120]} is there twice")
        made[name] = value
    return made
