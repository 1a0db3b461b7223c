"""Loops over rows, compiled for the CPU at hand.

What numba lacks for arithmetic whose bits are fixed: a fused multiply-add that is always one, an exponential
of plain operations, arrays by address. Neither LLVM nor who uses this may reorder a sum, so that vectors and
company change no bit. Knows nothing of models.

The machine code is kept beside the source, or in the user's cache where that cannot be written (where neither
can, every start compiles), and is known by the file that uses it: who changes this file or kernels/tile.py
deletes `kernels/__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from llvmlite import ir
    from numba import carray, cfunc, extending, njit, types
    from numba.core import cgutils
except ImportError:  # a GPU server: nothing here is called there
    IS_COMPILED = False
else:
    IS_COMPILED = True

Floats = NDArray[np.float32]  # of one dimension
LANES = 16  # partial sums of a reduction over a row, whatever the vectors of the machine hold
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)  # of exp's argument: beyond, e^x is no normal float
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it rounds to an integer, which lies in the low bits
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(-0.693359375), np.float32(2.12194440e-4)  # their sum is -ln 2
# e^r = 1 + r + r^2 * polynomial, |r| <= ln 2 / 2: S. L. Moshier, Cephes, expf
_P0, _P1, _P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_P3, _P4, _P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE = np.float32(1.0)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Instructions for compiled code, as numba.extending.intrinsic wants them."""
    return extending.intrinsic(function) if IS_COMPILED else function


@intrinsic
def fma(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        return builder.fma(*operands)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _power_of_two(typing_context: Any, rounded: Any) -> Any:
    """2^n of the n that _ROUND was added to: its low bits become the exponent."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.add(builder.bitcast(operands[0], word), ir.Constant(word, 127))
        return builder.bitcast(builder.shl(bits, ir.Constant(word, 23)), ir.FloatType())

    return types.float32(types.float32), generate


@intrinsic
def widened(typing_context: Any, half: Any) -> Any:
    """The float whose upper half, which is a bfloat16, these 16 bits are."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(operands[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.uint16), generate


def _pointer_to(kind: str) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
            return builder.inttoptr(operands[0], context.get_value_type(signature.return_type))

        return types.CPointer(getattr(types, kind))(types.intp), generate

    return pointer


_float_pointer, _half_pointer = _pointer_to("float32"), _pointer_to("uint16")
_index_pointer, _short_pointer = _pointer_to("int64"), _pointer_to("int32")


@intrinsic
def call_at(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call what lies at an address that `address_of` gave, with this tuple of int64."""

    def generate(context: Any, builder: Any, signature: Any, operands: Any) -> Any:
        word = ir.IntType(64)
        given = [
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(cgutils.unpack_tuple(builder, operands[1]), arguments, strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [word] * len(given))
        builder.call(builder.inttoptr(operands[0], kind.as_pointer()), given)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), generate


def address_of(count: int) -> Callable[[Callable[..., None]], int]:
    """Compile once, of so many int64, for whoever calls it by `call_at`; the address is this process's."""

    def compile_it(function: Callable[..., None]) -> int:
        if not IS_COMPILED:
            return 0
        signature = types.void(*[types.int64] * count)
        try:
            own = cfunc(signature, nopython=True, cache=True)(function)
        except RuntimeError:  # as in _jitted
            own = cfunc(signature, nopython=True)(function)
        return int(own.address)

    return compile_it


def compiled(signature: str) -> Callable[[Function], Function]:
    """Compile for these types when the module is imported; other threads run while it is called."""

    def compile_it(function: Function) -> Function:
        if not IS_COMPILED:
            return function
        return _jitted(function, signature, nogil=True)

    return compile_it


def _jitted(function: Function, *signature: str, **options: bool) -> Function:
    """Kept for the next start, if there is a directory to keep it in."""
    own: Function
    try:
        own = njit(*signature, cache=True, **options)(function)
    except RuntimeError:  # a container whose files and home are read-only
        own = njit(*signature, **options)(function)
    return own


def inlined(function: Function) -> Function:
    """Compile as a part of what calls it."""
    if not IS_COMPILED:
        return function
    return _jitted(function)


@inlined
def floats(address: int, count: int) -> Any:
    """What lies there, as an array."""
    return carray(_float_pointer(address), count)


@inlined
def halves(address: int, count: int) -> Any:
    """The same of uint16, for `widened`."""
    return carray(_half_pointer(address), count)


@inlined
def indices(address: int, count: int) -> Any:
    """The same of int64."""
    return carray(_index_pointer(address), count)


@inlined
def shorts(address: int, count: int) -> Any:
    """The same of int32."""
    return carray(_short_pointer(address), count)


@inlined
def exponential(x: np.float32) -> Any:
    """e^x within 2 ulp; NaN stays NaN."""
    x = _LEAST if x < _LEAST else x
    x = _MOST if x > _MOST else x
    rounded = fma(x, _LOG2_E, _ROUND)
    whole = rounded - _ROUND
    r = fma(whole, _LN2_LOW, fma(whole, _LN2_HIGH, x))
    poly = fma(fma(fma(fma(fma(_P0, r, _P1), r, _P2), r, _P3), r, _P4), r, _P5)
    return fma(poly, r * r, r + _ONE) * _power_of_two(rounded)
