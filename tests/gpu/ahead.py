"""What a kernel takes of an sm_90, compiled without a device.

Registers, stack (spills), shared memory, and the matrix instructions of the PTX. Knows nothing of any kernel:
a `Build` names one by its module, so that `resources` can compile many in processes of their own.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MAX_SHARED_BYTES = 227 * 1024  # what one block of an sm_90 can have


def operand_of(rows: int, width: int = 128, dtype: str = "fp8e4nv") -> str:
    """An operand of kernels/hopper.py that comes `rows` at a time, among the types of a build."""
    bits = {"fp8e4nv": 8, "fp16": 16, "bf16": 16}[dtype]
    return (
        f"tensordesc<{dtype}[{rows}, {width}],NVMMASharedLayout(swizzle_byte_width=128, "
        f"element_bitwidth={bits}, rank=2, transposed=False, fp4_padded=False, "
        "cga_layout=[])>"
    )


OPERAND = operand_of(128)
_WGMMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)\.f32\.(\w+)\.\w+")
_PRODUCT = re.compile(r"\b[HQ]GMMA\.")
_WAIT = re.compile(r"\bWARPGROUP\.DEPBAR\b")
_MMA_SYNC = re.compile(r"mma\.sync\.aligned\.(m\d+n\d+k\d+)\.row\.col\.f32\.(\w+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """One compilation: types of the runtime arguments ("*fp16", "i32", "fp32"), values of the constexprs.

    Pointers count as aligned to 16 bytes, as torch's are; so do the integers named in `aligned`.
    """

    module: str
    kernel: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    aligned: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """wgmma and mma_sync: shape and type of the matrix instructions, such as "m64n64k16 f16".

    products and waits: of a warpgroup, as the assembler made them. Short of registers it waits after every
    product, without a word and without a spill.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    wgmma: frozenset[str]
    mma_sync: frozenset[str]
    products: int
    waits: int
    ptx: str = field(repr=False)

    def check(self, *, wgmma: str | None = None) -> None:
        """Assert what every kernel promises: no spill, shared memory in bounds, this instruction only."""
        assert self.stack_bytes == 0, f"spills: {self}"
        assert self.shared_bytes <= MAX_SHARED_BYTES, f"too much shared memory: {self}"
        if wgmma is not None:
            assert wgmma in self.wgmma and not self.mma_sync, f"wants wgmma {wgmma}: {self}"
            assert 2 * self.waits <= self.products, f"products wait for each other: {self}"


def resources(builds: Sequence[Build]) -> list[Resources]:
    """Of every build, in order, by as many processes as there are cores."""
    workers = min(len(builds), len(os.sched_getaffinity(0)))
    if workers <= 1:
        return [compile_ahead(build) for build in builds]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(compile_ahead, builds))


def compile_ahead(build: Build) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(importlib.import_module(build.module), build.kernel)
    compiled = triton.compile(
        _source(kernel, build),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": build.num_warps, "num_stages": build.num_stages, **build.options},
    )
    cubin = compiled.asm["cubin"]
    usage, code = _usage(cubin), _tool("nvdisasm", "-c", cubin=cubin)
    ptx = compiled.asm["ptx"]
    return Resources(
        registers=usage["REG"],
        stack_bytes=usage["STACK"] + usage.get("LOCAL", 0),
        shared_bytes=compiled.metadata.shared,
        wgmma=frozenset(f"{shape} {dtype}" for shape, dtype in _WGMMA.findall(ptx)),
        mma_sync=frozenset(f"{shape} {dtype}" for shape, dtype in _MMA_SYNC.findall(ptx)),
        products=len(_PRODUCT.findall(code)),
        waits=len(_WAIT.findall(code)),
        ptx=ptx,
    )


def _source(kernel: Any, build: Build) -> Any:
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    wrong = set(kernel.arg_names) ^ (set(build.types) | set(build.constants))
    assert not wrong, f"{build.kernel} and its build disagree about {sorted(wrong)}"
    aligned = [name for name, dtype in build.types.items() if dtype.startswith("*") or name in build.aligned]
    return (GluonASTSource if kernel.is_gluon() else ASTSource)(
        fn=kernel,
        signature={name: build.types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=dict(build.constants),
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def _usage(cubin: bytes) -> dict[str, int]:
    """{"REG": registers of a thread, "STACK": bytes of it, ...} as the toolkit reports them."""
    report = _tool("cuobjdump", "-res-usage", cubin=cubin)
    line = next(line for line in report.splitlines() if "REG:" in line)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", line)}


def _tool(name: str, option: str, *, cubin: bytes) -> str:
    """What one of the tools in Triton's wheel says about a kernel."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
