"""Triton kernels on the CPU, with bf16 and FP8 made right.

Within `interpreting()` every launch of a @triton.jit kernel runs in Triton's interpreter, on CPU tensors;
outside of it nothing changed, so that one process can interpret, compile ahead and launch. The interpreter of
Triton 3.6 rounds to bf16 and E4M3 wrongly and multiplies the bits of bf16 as integers; torch does both here.
It never shows races: programs run one after another. Knows nothing of any kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

CHECKED_VERSIONS = ("3.6.0",)


@contextmanager
def interpreting() -> Iterator[None]:
    """Launches and device calls of Triton kernels are interpreted while this is open."""
    import triton
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    if tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip(f"numpy is {np.__version__}: the interpreter of Triton 3.6 needs one below 2.4")
    if triton.__version__ not in CHECKED_VERSIONS:
        raise RuntimeError(
            f"Triton is {triton.__version__}: its interpreter was corrected for {CHECKED_VERSIONS}; see "
            "whether bf16 and FP8 are right in this one, then add it"
        )
    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):  # a device warns of nothing
        patch.setattr(interpreter, "_convert_float", _convert)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", _dot)
        patch.setattr(JITFunction, "__getitem__", _launcher)
        patch.setattr(JITFunction, "__call__", _call)
        patch.setattr(triton.knobs.runtime, "interpret", True)
        yield


def _launcher(kernel: Any, grid: Any) -> Any:
    from triton.runtime.interpreter import InterpretedFunction

    return InterpretedFunction(kernel.fn)[grid]


def _call(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """A kernel's call of another; the interpreter's own leaves the language changed behind it."""
    from triton.runtime.interpreter import InterpretedFunction, _patch_lang

    function = InterpretedFunction(kernel.fn).rewrite()
    scope = _patch_lang(kernel.fn)
    try:
        return function(*args, **kwargs)
    finally:
        scope.restore()


def _torch_dtype(dtype: Any) -> torch.dtype:
    names = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
    names |= {"fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
    return names[dtype.scalar.name]


def _tensor(data: np.ndarray, dtype: Any) -> torch.Tensor:
    """The interpreter keeps bf16 and FP8 as unsigned integers of the same width."""
    contiguous = np.ascontiguousarray(data)
    integers = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}[contiguous.itemsize]
    return torch.from_numpy(contiguous.view(integers).copy()).view(_torch_dtype(dtype)).reshape(data.shape)


def _convert(data: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """The bits of data in another format, as unsigned integers; E4M3 saturates as the device's cast does."""
    values, wanted = _tensor(data, source).float(), _torch_dtype(target)
    if wanted == torch.float8_e4m3fn:
        values = torch.where(values.isnan(), values, values.clamp(-448, 448))
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.itemsize]
    unsigned = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[wanted.itemsize]
    return values.to(wanted).view(integers).numpy().view(unsigned).reshape(np.shape(data))


def _dot(builder: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    from triton.runtime.interpreter import TensorHandle

    if not a.dtype.is_floating():
        return TensorHandle(np.matmul(a.data, b.data, dtype=d.data.dtype) + d.data, d.dtype.scalar)
    product = _tensor(a.data, a.dtype).float() @ _tensor(b.data, b.dtype).float()
    return TensorHandle(product.numpy().astype(d.data.dtype) + d.data, d.dtype.scalar)
