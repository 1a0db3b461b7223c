"""Shared memory that some warps of a Gluon kernel fill and others empty, stage after stage.

Two barriers a stage: `ready` when it holds what was asked for, `free` when all who read it have. A walker
keeps the stage and its phase and waits with them; whoever fills begins with phase 1, so that the first round
finds every stage free. Knows nothing of what is kept.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def following(stage: gl.tensor, phase: gl.tensor, STAGES: gl.constexpr) -> gl.tuple:
    """(stage, phase) of the next step."""
    wraps = stage == STAGES - 1
    return gl.where(wraps, 0, stage + 1), gl.where(wraps, phase ^ 1, phase)


@gluon.jit  # type: ignore[untyped-decorator,unused-ignore]
def release(free: gl.shared_memory_descriptor) -> None:
    """Every warp of the partition has read the stage. Arriving speaks for one thread: hence the barrier."""
    gl.thread_barrier()
    mbarrier.arrive(free, count=1)
