"""An expert on the wire: what was held is what comes, or a BadFrame."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import expert_frames
from actors.expert_frames import Assembly, ExpertPart, ExpertWanted, part_of
from kernels.int8 import quantize_weight
from kernels.panel import Panels
from model.expert_form import digest_of, empty_expert, form_of, parts_of
from model.experts import Mlp
from router.wire import BadFrame, FrameParser, encode, kinds

CONFIG: Any = SimpleNamespace(hidden_size=12, moe_intermediate_size=5)
DTYPES = [torch.float32, torch.bfloat16, torch.int8]
PAIR = (3, 7)


def expert_of(dtype: torch.dtype, seed: int, is_narrow: bool = False) -> Mlp:
    """is_narrow: of fp32, the gate is held in panels of 16 bits."""
    generator = torch.Generator().manual_seed(seed)
    gate_up, down = torch.randn(12, 10, generator=generator), torch.randn(5, 12, generator=generator)
    if dtype == torch.int8:
        return Mlp(
            gate_up_DF=quantize_weight(gate_up.t().contiguous()),
            down_FD=quantize_weight(down.t().contiguous()),
        )
    if is_narrow and dtype == torch.float32:
        return Mlp(gate_up_DF=Panels.of(gate_up[None]), down_FD=down)
    return Mlp(gate_up_DF=gate_up.to(dtype), down_FD=down.to(dtype))


experts = st.builds(expert_of, st.sampled_from(DTYPES), st.integers(0, 9), st.booleans())


def dtype_of(expert: Mlp) -> torch.dtype:
    [last] = [dtype for dtype in DTYPES if str(dtype) == f"torch.{form_of(expert)[1]}"]
    return last


def next_part(assembly: Assembly) -> ExpertWanted:
    return ExpertWanted(layer=PAIR[0], expert=PAIR[1], start=assembly.num_bytes)


def travelled(wanted: ExpertWanted, expert: Mlp, cut: int) -> tuple[ExpertPart, memoryview]:
    """A part as a socket would hand it over, in two pieces."""
    message, payload = part_of(expert, wanted)
    whole = encode(message, sum(map(len, payload))) + b"".join(payload)
    parser = FrameParser(kinds(ExpertPart))
    for start, end in pairwise([0, cut % len(whole), len(whole)]):
        parser.feed(whole[start:end])
    frame = parser.next_frame()
    assert frame is not None and isinstance(frame.message, ExpertPart)
    return frame.message, frame.payload


@given(expert=experts, part_bytes=st.integers(50, 800), cut=st.integers(0, 10**6))
def test_an_expert_arrives_bit_for_bit_in_parts_of_any_size(expert: Mlp, part_bytes: int, cut: int):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(expert_frames, "PART_BYTES", part_bytes)
        assembly = Assembly(CONFIG, dtype_of(expert), PAIR)
        asked: list[ExpertWanted] = []
        while (whole := assembly.whole) is None:
            asked += assembly.wanted()
            assert len(asked) <= expert_frames.PARTS_AHEAD
            assembly.add(*travelled(asked.pop(0), expert, cut))
        assert not asked and not assembly.wanted()
    assert form_of(whole) == form_of(expert)
    for mine, theirs in zip(parts_of(whole), parts_of(expert), strict=True):
        assert torch.equal(mine, theirs)
    assert digest_of(whole) == digest_of(expert)


@given(
    expert=experts,
    change=st.sampled_from(["layer", "expert", "start", "form", "short", "long", "empty", "again"]),
    by=st.integers(1, 50),
    after=st.integers(0, 2),
)
def test_any_other_part_than_the_next_is_refused(expert: Mlp, change: str, by: int, after: int):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(expert_frames, "PART_BYTES", 60)
        assembly = Assembly(CONFIG, dtype_of(expert), PAIR)
        for _ in range(after):
            assembly.add(*travelled(next_part(assembly), expert, 0))
        before = assembly.num_bytes
        part, payload = travelled(next_part(assembly), expert, 0)
        if change == "form":
            part = replace(part, form=("float16", part.form[1]))
        elif change in ("short", "long", "empty"):
            payload = {"short": payload[by:], "long": memoryview(bytes(payload) * 2), "empty": payload[:0]}[
                change
            ]
        elif change == "again":
            assembly.add(part, payload)
            before = assembly.num_bytes
        else:
            part = replace(part, **{change: getattr(part, change) + by})
        with pytest.raises(BadFrame):
            assembly.add(part, payload)
        assert assembly.num_bytes == before


@given(expert=experts, place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_no_bit_of_an_expert_changes_unnoticed(expert: Mlp, place: int, bit: int):
    before = digest_of(expert)
    parts = [part.view(torch.uint8).flatten() for part in parts_of(expert)]
    part = parts[place % len(parts)]
    part[place % len(part)] ^= 1 << bit
    assert digest_of(expert) != before


def test_an_expert_has_one_digest_however_a_host_holds_it():
    up, down = torch.randn(12, 140).bfloat16().float(), torch.randn(70, 12).bfloat16().float()
    plain = Mlp(gate_up_DF=up, down_FD=down)
    narrow = Mlp(gate_up_DF=Panels.of(up[None]), down_FD=Panels.of(down[None]))
    assert digest_of(plain) == digest_of(narrow)
    up[3, 7] += 1e-6
    assert digest_of(Mlp(gate_up_DF=up, down_FD=down)) != digest_of(narrow)


@pytest.mark.parametrize("form", [("", ""), ("int8", "float32"), ("float16", "float32")])
def test_what_fp32_is_never_held_as_takes_no_memory(form: tuple[str, str]):
    with pytest.raises(ValueError, match="held as"):
        empty_expert(CONFIG, torch.float32, form)
