"""A Hugging Face checkpoint directory, read strictly.

`Checkpoint.open` reads config.json, the index and every shard's header, so that a damaged or hostile
directory is refused before any weight is read. Knows nothing of layers: which names to ask for is the
business of model/names.py.

Errors: CheckpointError (model/shards.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernels.blocks import scale_shape
from model.config import ModelConfig
from model.fields import ConfigError
from model.names import Shape, mtp_tensors
from model.shards import (
    FP8,
    MAX_HEADER_BYTES,
    READABLE,
    WIDE,
    CheckpointError,
    StoredTensor,
    inside,
    json_object,
    naming,
    one_line,
    read_header,
    refusal,
)

if TYPE_CHECKING:
    from model.reader import Progress, WeightReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The tensors of a directory by name. `index` is the file that says which there are."""

    directory: Path
    index: Path
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]

    @staticmethod
    def open(directory: Path) -> Checkpoint:
        """Read config, index and every shard's header, but no weight; raises CheckpointError."""
        try:
            config = ModelConfig.from_file(inside(directory, "config.json", tensor=None))
        except ConfigError as error:
            raise CheckpointError(one_line(str(error))) from None
        index = directory / "model.safetensors.index.json"
        if os.path.lexists(index):
            tensors = _indexed_tensors(directory, _read_index(inside(directory, index.name, tensor=None)))
        else:
            index = directory / "model.safetensors"
            tensors = read_header(inside(directory, index.name, tensor=None))
        return Checkpoint(directory=directory, index=index, config=config, tensors=tensors)

    def config_to_serve(self, draft_tokens: int) -> ModelConfig:
        """The config with the layers that serving reads.

        One MTP layer if tokens are to be drafted and it is there, however deep the drafts; else none.
        """
        one = replace(self.config, num_mtp_layers=min(1, self.config.num_mtp_layers, draft_tokens))
        return one if self.holds(mtp_tensors(one)) else replace(one, num_mtp_layers=0)

    def holds(self, names: Iterable[str]) -> bool:
        """Whether every one of `names` is there, in whatever shape."""
        return all(name in self.tensors for name in names)

    def check(self, required: Mapping[str, Shape]) -> None:
        """Raise CheckpointError at the first tensor that is missing or of a wrong shape or dtype."""
        for name, shape in required.items():
            tensor = self.tensor(name)
            if tensor.shape != shape:
                what = f"has shape {list(tensor.shape)}, config.json asks for {list(shape)}"
                raise refusal(tensor.file, name, what)
            self.scale_of(tensor)

    def tensor(self, name: str) -> StoredTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise refusal(self.index, name, "is missing from the checkpoint")
        return tensor

    def scale_of(self, tensor: StoredTensor) -> StoredTensor | None:
        """The scales of an FP8 weight, None of a wide tensor; raises CheckpointError for others."""
        if tensor.dtype in WIDE:
            return None
        file, name, block = tensor.file, tensor.name, self.config.fp8_block
        if tensor.dtype != FP8:
            raise refusal(file, name, f"has dtype {tensor.dtype}: expected one of {', '.join(READABLE)}")
        if block is None:
            raise refusal(file, name, f"has dtype {FP8}, but config.json has no quantization_config")
        if len(tensor.shape) != 2:
            raise refusal(file, name, f"has dtype {FP8}, but only matrices have block scales")
        scale = self.tensors.get(f"{name}_scale_inv")
        if scale is None:
            raise refusal(file, name, f"is {FP8} without its scales {name}_scale_inv")
        if scale.dtype not in ("F32", "BF16"):
            raise refusal(scale.file, scale.name, f"has dtype {scale.dtype}: scales are F32 or BF16")
        if scale.shape != (need := scale_shape(tensor.shape, block)):
            raise refusal(scale.file, scale.name, f"has shape {list(scale.shape)}: blocks need {list(need)}")
        return scale

    def stored_bytes(self, names: Iterable[str]) -> int:
        """What reading `names` will read, the scales of FP8 weights included."""
        total = 0
        for tensor in map(self.tensor, names):
            scale = self.scale_of(tensor)
            total += tensor.num_bytes + (scale.num_bytes if scale is not None else 0)
        return total

    def reader(
        self,
        progress: Callable[[Progress], None] | None = None,
        *,
        total_names: Iterable[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> WeightReader:
        """A reader that tells `progress` how far through `total_names` it is, in seconds of `clock`."""
        from model.reader import WeightReader  # late: to check a checkpoint takes no torch

        return WeightReader(
            self,
            block=self.config.fp8_block,
            bytes_total=self.stored_bytes(total_names),
            progress=progress,
            clock=clock,
        )


def _read_index(file: Path) -> dict[str, str]:
    with naming(file, None), file.open("rb") as opened:
        raw = json_object(opened.read(MAX_HEADER_BYTES), file)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refusal(file, None, "has no weight_map from tensor to shard")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise refusal(file, name, f"is mapped to {shard!r:.80}: expected a file name")
    return weight_map


def _indexed_tensors(directory: Path, weight_map: Mapping[str, str]) -> dict[str, StoredTensor]:
    first_names: dict[str, str] = {}
    for name, shard in weight_map.items():
        first_names.setdefault(shard, name)
    tensors: dict[str, StoredTensor] = {}
    for shard, name in sorted(first_names.items()):
        for tensor in read_header(inside(directory, shard, tensor=name)).values():
            owner = weight_map.get(tensor.name)
            if owner == shard:
                tensors[tensor.name] = tensor
            elif owner is not None:
                raise refusal(
                    tensor.file, tensor.name, f"is there twice: the index places it in {owner!r:.80}"
                )
    for name, shard in weight_map.items():
        if name not in tensors:
            raise refusal(directory / shard, name, "is not in the shard where the index places it")
    return tensors
