"""An expert's weights as plain tensors, in an order.

So they are digested, and so they travel from actor to actor. Knows nothing of files or sockets.

Letters: D hidden  F expert width
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from kernels.int8 import Int8Weight
from kernels.panel import Panels
from kernels.rows import Weight, is_exact_in_half
from model.config import ModelConfig
from model.experts import Mlp

Form = tuple[str, str]  # as what gate_up_DF and down_FD are held

PANELS = "panels"
HELD_AS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.float32: ("float32", PANELS),  # see kernels/rows.py, narrowed
    torch.bfloat16: ("bfloat16",),
    torch.int8: ("int8",),
}


def form_of(expert: Mlp) -> Form:
    return _name_of(expert.gate_up_DF), _name_of(expert.down_FD)


def parts_of(expert: Mlp) -> list[Tensor]:
    """All of it; every one is contiguous."""
    return [*_parts(expert.gate_up_DF), *_parts(expert.down_FD)]


def empty_expert(config: ModelConfig, dtype: torch.dtype, form: Form) -> Mlp:
    """Of the model's shapes, its parts to be filled; raises ValueError for what `dtype` is never held as."""
    held_as = HELD_AS[dtype]
    if not {*held_as} >= {*form}:
        raise ValueError(f"held as {form!r:.80}: of {dtype} it is {' or '.join(held_as)}")
    hidden, width = config.hidden_size, config.moe_intermediate_size
    return Mlp(
        gate_up_DF=_empty(hidden, 2 * width, form[0]),
        down_FD=_empty(width, hidden, form[1]),
    )


def num_bytes(expert: Mlp) -> int:
    return sum(part.nbytes for part in parts_of(expert))


def digest_of(expert: Mlp) -> int:
    """CRC32 of shapes and values. Whether panels or fp32 hold the same values depends on the host's BLAS."""
    crc = 0
    for weight in (expert.gate_up_DF, expert.down_FD):
        if isinstance(weight, Tensor) and is_exact_in_half(weight):
            weight = Panels.of(weight[None])
        for part in _parts(weight):
            crc = zlib.crc32(f"{_shape_of(weight)}{part.dtype}".encode(), crc)
            crc = zlib.crc32(part.view(torch.uint8).numpy().data, crc)
    return crc


def _parts(weight: Weight) -> Iterator[Tensor]:
    if isinstance(weight, Int8Weight):
        yield weight.values_NK
        yield weight.scale_N
    elif isinstance(weight, Panels):
        yield weight.values_HX
    else:
        yield weight


def _shape_of(weight: Weight) -> tuple[int, ...]:
    if isinstance(weight, Panels):
        return weight.inner, weight.outputs
    return tuple(next(_parts(weight)).shape)


def _name_of(weight: Weight) -> str:
    if isinstance(weight, Panels):
        return PANELS
    return str(next(_parts(weight)).dtype).removeprefix("torch.")


def _empty(inputs: int, outputs: int, form: str) -> Weight:
    if form == "int8":
        return Int8Weight(torch.empty(outputs, inputs, dtype=torch.int8), torch.empty(outputs))
    if form == PANELS:
        return Panels(torch.empty(1, inputs * outputs, dtype=torch.bfloat16), inputs, outputs)
    return torch.empty(inputs, outputs, dtype=getattr(torch, form))
