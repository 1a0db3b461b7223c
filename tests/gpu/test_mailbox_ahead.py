"""What orders rows and flags between two GPUs stands in the code that the device gets."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="needs Triton")

from tests.gpu.ahead import Build, Resources, compile_ahead

INT, INTS, LONGS = "i32", "*i32", "*i64"


def build(kernel: str, types: dict[str, str], constants: dict[str, int], num_warps: int = 1) -> Build:
    return Build(
        module="kernels.mailbox", kernel=kernel, types=types, constants=constants, num_warps=num_warps
    )


POST = build(
    "_post",
    {
        "values_ptr": INTS, "scale_ptr": "*fp32", "experts_ptr": INTS, "owners_ptr": INTS, "asked_ptr": LONGS,
        "sequence_ptr": LONGS, "lost_ptr": INTS, "arrived_ptr": INTS, "lanes_ptr": INTS, "rows": INT,
        "layer": INT, "scale_stride": INT,
    },
    {"D": 7168, "E": 256, "K": 8, "PLACES": 9, "BLOCK_W": 2048, "BLOCK_G": 64},
    num_warps=4,
)  # fmt: skip
WAIT = build(
    "_wait",
    {"words_ptr": LONGS, "asked_ptr": LONGS, "sequence_ptr": LONGS, "lost_ptr": INTS, "patience_ptr": LONGS},
    {"LANES": 3},
)
COLLECT = build(
    "_collect",
    {
        "heads_ptr": LONGS, "served_ptr": LONGS, "claimed_ptr": LONGS, "timing_ptr": LONGS,
        "counts_ptr": INTS, "num_counts": INT,
    },
    {"BOXES": 4, "BLOCK_B": 4},
)  # fmt: skip
ANSWER = build(
    "_answer",
    {"claimed_ptr": LONGS, "refused_ptr": LONGS, "served_ptr": LONGS, "back_ptr": LONGS},
    {"BOXES": 4, "BLOCK_B": 4},
)


def lines_with(found: Resources, *words: str) -> list[str]:
    return [line for line in found.ptx.splitlines() if all(word in line for word in words)]


def test_flags_are_released_to_the_system_and_acquired_from_it() -> None:
    post, wait, collect, answer = map(
        compile_ahead, (POST, WAIT, COLLECT, ANSWER)
    )  # small: a process each takes longer
    for sender in (post, answer):
        sender.check()
        assert lines_with(sender, ".sys.", "release", "exch.b64"), "the number goes out after the rows"
    for receiver in (wait, collect):
        receiver.check()
        assert lines_with(receiver, ".sys.", "acquire"), "the rows are read after the number"
        assert lines_with(receiver, "ld.volatile"), "each look is a look at memory"
        assert lines_with(receiver, "globaltimer"), "no wait is without end"
    assert lines_with(post, ".gpu.acq_rel.add"), "the last program sees the rows of all"
    assert len(lines_with(post, "st.global.v4")) >= 4, "16 bytes a thread and store"
