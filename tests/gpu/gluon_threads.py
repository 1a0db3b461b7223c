"""Gluon kernels for an sm_90 on the CPU: a thread for each part of a program.

Within `on_threads(kernel)` a launch runs its programs one after the other, and the parts of `warp_specialize`
side by side. Barriers count arrivals and announced bytes and flip their phase; a product is made as late as
its wait, so that memory given back too early shows; copies take a moment. Layouts mean nothing here, so what
one thread of a warp must tell the others is not checked. Made for what kernels/dense_mla_gluon.py uses. Knows
nothing of any kernel.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import ring
from kernels.fp8 import power_of_two_scale

PATIENCE_S = 20.0  # for a barrier, before it is taken for a deadlock
QUICK_S, SLOW_S, SLOW_SHARE = 2e-4, 5e-3, 0.05  # of copies, which overtake each other
_own = threading.local()  # of a part: products that were begun


@contextmanager
def on_threads(kernel: Any) -> Iterator[_Kernel]:
    """Gives what can be launched in the kernel's place."""
    place = SimpleNamespace(program=0, programs=1)
    language = _language(place)
    named = {
        "gl": language,
        "mbarrier": _Mbarrier,
        "tma": SimpleNamespace(async_copy_global_to_shared=_copy),
        "warpgroup_mma": _begin,
        "warpgroup_mma_wait": _wait,
        "scale_bits_of": _ScaleBits,
        "inverse_of": lambda bits: 1 / bits.scale,
    }
    with pytest.MonkeyPatch.context() as patch:
        for module in (sys.modules[kernel.fn.__module__], ring):
            for name, value in list(vars(module).items()):
                if name in named:
                    patch.setattr(module, name, named[name])
                elif type(value).__name__ == "constexpr":
                    patch.setattr(module, name, value.value)
                elif hasattr(value, "fn"):
                    patch.setattr(module, name, value.fn)

        yield _Kernel(kernel.fn, place)


class _Kernel:
    """Launched as a kernel is: kernel[grid](...)."""

    def __init__(self, function: Callable[..., None], place: SimpleNamespace) -> None:
        self._function, self._place = function, place

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == 4, "parts are warpgroups"
            pointed = [_Pointer(arg) if isinstance(arg, Tensor) else arg for arg in args]
            (self._place.programs,) = grid
            for program in range(self._place.programs):
                self._place.program = program
                self._function(*pointed, **constants)

        return launch


class _Barrier:
    """Phase by phase: complete when all have arrived and all announced bytes have."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = self._pending = self._bytes = self._phase = 0

    def init(self, count: int) -> None:
        self._count = self._pending = count

    def advance(self, arrivals: int, num_bytes: int) -> None:
        with self._changed:
            self._pending -= arrivals
            self._bytes += num_bytes
            assert self._pending >= 0 and self._bytes >= 0, "more came than a phase waits for"
            if not self._pending and not self._bytes:
                self._phase, self._pending = self._phase + 1, self._count
                self._changed.notify_all()

    def wait(self, parity: int) -> None:
        with self._changed:
            passed = self._changed.wait_for(lambda: (self._phase - 1) & 1 == int(parity), PATIENCE_S)
        assert passed, f"nobody ends phase {self._phase}: waited for parity {parity}"


class _Barriers:
    """An allocation of some; that of one is also named without an index."""

    def __init__(self, count: int) -> None:
        self.each = [_Barrier() for _ in range(count)]

    def index(self, at: int) -> _Barrier:
        return self.each[at]


class _Mbarrier:
    """The module of that name."""

    class MBarrierLayout:
        pass

    @staticmethod
    def init(barrier: Any, count: int) -> None:
        _only(barrier).init(count)

    @staticmethod
    def expect(barrier: Any, num_bytes: int) -> None:
        _only(barrier).advance(1, num_bytes)

    @staticmethod
    def arrive(barrier: Any, *, count: int, pred: Any = True) -> None:
        if pred:
            _only(barrier).advance(count, 0)

    @staticmethod
    def wait(barrier: Any, parity: int) -> None:
        _only(barrier).wait(parity)


def _only(barrier: Any) -> _Barrier:
    return barrier.each[0] if isinstance(barrier, _Barriers) else barrier


class _Memory:
    """A shared memory descriptor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def index(self, at: Any) -> _Memory:
        return _Memory(self.values[at])

    def permute(self, order: tuple[int, ...]) -> _Memory:
        return _Memory(self.values.permute(order))


class _Pointer:
    """Into a tensor's storage; elements are counted from its first."""

    def __init__(self, base: Tensor, offset: Any = 0) -> None:
        self.base, self.offset = base, offset
        self.dtype = SimpleNamespace(element_ty=base.dtype)

    def __add__(self, offset: Any) -> _Pointer:
        return _Pointer(self.base, self.offset + offset)


class _ScaleBits:
    """kernels/quantize.py's bits, whose one use beside the inverse is to be read as fp32."""

    def __init__(self, largest: Tensor) -> None:
        self.scale = power_of_two_scale(largest)

    def to(self, dtype: torch.dtype, *, bitcast: bool) -> Tensor:
        assert bitcast and dtype == torch.float32
        return self.scale


class _Product:
    """Begun, and made by its wait."""

    def __init__(self, a: Any, b: _Memory, sums: Any, use_acc: bool) -> None:
        self._a, self._b, self._sums, self._use_acc = a, b, sums, use_acc
        self.values: Tensor | None = None

    def make(self) -> None:
        a = self._a.values if isinstance(self._a, _Memory) else self._a
        assert a.dtype == self._b.values.dtype, "operands of two types"
        product = a.float() @ self._b.values.float()
        sums: Any = self._sums.values if isinstance(self._sums, _Product) else self._sums
        self.values = product + sums if self._use_acc else product


def _begin(a: Any, b: _Memory, sums: Any, *, use_acc: bool = True, is_async: bool) -> _Product:
    assert is_async
    product = _Product(a, b, sums, use_acc)
    _own.begun.append(product)
    return product


def _wait(outstanding: int, *, deps: list[_Product]) -> Any:
    time.sleep(QUICK_S)
    while len(_own.begun) > outstanding:
        _own.begun.pop(0).make()
    made = [product.values for product in deps]
    assert all(values is not None for values in made), "the wait leaves this one under way"
    return made[0] if len(made) == 1 else tuple(made)


def _copy(descriptor: Any, at: Sequence[Any], barrier: Any, memory: _Memory) -> None:
    """Under way until the barrier is told. What lies beyond the matrix is zero."""
    (row, column), (rows, columns) = (int(number) for number in at), descriptor.block_shape
    matrix = descriptor.base
    assert list(memory.values.shape) == [rows, columns] and memory.values.dtype == matrix.dtype
    assert column + columns <= matrix.shape[1], "columns beyond the matrix"

    def arrive() -> None:
        inside = matrix[row : row + rows, column : column + columns]
        memory.values.zero_()
        memory.values[: len(inside)] = inside
        _only(barrier).advance(0, -memory.values.numel() * memory.values.element_size())

    threading.Timer(SLOW_S if random.random() < SLOW_SHARE else QUICK_S, arrive).start()


def _store(at: _Pointer, values: Tensor, *, mask: Tensor) -> None:
    size = at.base.untyped_storage().nbytes() // at.base.element_size()
    storage = torch.as_strided(at.base, (size,), (1,), 0)
    kept = mask.expand(values.shape)
    first = at.base.storage_offset()
    storage[first + torch.as_tensor(at.offset).expand(values.shape)[kept]] = values[kept]


def _specialize(parts: Sequence[tuple[Any, tuple[Any, ...]]], _warps: Any, _registers: Any) -> None:
    with ThreadPoolExecutor(len(parts), initializer=_begin_part) as pool:
        running = [pool.submit(part, *args) for part, args in parts]
        first, _ = wait(running, return_when=FIRST_EXCEPTION)  # the others then wait for it in vain
    for part in first:
        part.result()


def _begin_part() -> None:
    _own.begun = []


def _allocate(dtype: torch.dtype, shape: Sequence[int], layout: Any) -> Any:
    if isinstance(layout, _Mbarrier.MBarrierLayout):
        return _Barriers(shape[0])
    return _Memory(torch.full(tuple(shape), float("nan"), dtype=dtype))


def _each(of_tensors: Callable[..., Any], of_numbers: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (of_tensors if isinstance(args[0], Tensor) else of_numbers)(*args)


def _language(place: SimpleNamespace) -> SimpleNamespace:
    """What stands behind `gl`. Numbers are Python's, so that loops and conditions are."""

    def no_layout(*_: Any) -> None:
        return None

    layouts = (
        "NVMMADistributedLayout",
        "NVMMASharedLayout",
        "SliceLayout",
        "BlockedLayout",
        "DotOperandLayout",
    )
    return SimpleNamespace(
        **dict.fromkeys(layouts, no_layout),
        float32=torch.float32,
        float16=torch.float16,
        bfloat16=torch.bfloat16,
        float8e4nv=torch.float8_e4m3fn,
        int32=torch.int32,
        int64=torch.int64,
        constexpr=lambda value: value,
        to_tensor=lambda value: value,
        static_range=range,
        program_id=lambda _axis: place.program,
        num_programs=lambda _axis=0: place.programs,
        arange=lambda first, end, layout: torch.arange(first, end),
        full=lambda shape, value, dtype, layout: torch.full(shape, value, dtype=dtype),
        where=_each(torch.where, lambda condition, one, other: one if condition else other),
        minimum=_each(torch.minimum, min),
        maximum=_each(torch.maximum, max),
        max=lambda values, axis: values.amax(axis),
        sum=lambda values, axis: values.sum(axis),
        abs=torch.abs,
        exp2=torch.exp2,
        convert_layout=lambda values, layout: values,
        allocate_shared_memory=_allocate,
        store=_store,
        thread_barrier=lambda: None,
        warp_specialize=_specialize,
    )
