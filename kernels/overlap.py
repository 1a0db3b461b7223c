"""Kernels that start while the one before them ends.

On a GPU a launch can ask for programmatic dependence: its programs are scheduled as soon as those of the
kernel before leave room, and wait at `after_previous` until that kernel's writes are seen. Every kernel
launched with `overlap` must call it before it touches memory that another kernel reads or writes. Knows
nothing of kernels.
"""

from __future__ import annotations

from typing import Any

import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from triton.language.extra.cuda import (  # type: ignore[import-not-found,unused-ignore]
    gdc_launch_dependents,
    gdc_wait,
)


def overlap(given: Tensor) -> dict[str, Any]:
    """Launch arguments: on where `given` lies on a GPU, off in the interpreter."""
    return {"OVERLAP": given.is_cuda, "launch_pdl": given.is_cuda}


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def after_previous(OVERLAP: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """Let the next kernel be scheduled, and wait for the one before."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
