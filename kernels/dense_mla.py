"""Causal MLA over keys and values of every head, for tokens that see all there is.

As long as a token sees no more keys than it may choose, there is nothing to choose, and tokens side by side
see nearly the same keys: then it is cheaper to make every head its own keys and values of the latents (a
product, kernels/fp8_gemm_many.py) and to score 192 numbers a key and sum 128 than to do both in latent space,
where it is 576 and 512. Other bits than there. Launches kernels/dense_mla_gluon.py, on an sm_90 alone. Knows
nothing of pages and of how keys were made.

Letters: R rows  X columns of the queries' product  S keys  N heads  M = N * (128 key + 128 value)
         P rotary pairs = 32  T positions  Q queries of a warpgroup
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fp8_rows import GROUP, Fp8Rows
from kernels.hopper import multiprocessors, operand
from kernels.sparse_mla import ROTARY_DIMS, check_tensor

try:
    from kernels.dense_mla_gluon import dense_mla_kernel
except ImportError:  # a Triton without Gluon
    dense_mla_kernel = None

QUERY_DIMS = GROUP + ROTARY_DIMS  # of a head
TILE = 128  # queries of a program's block, keys of a tile
TURNED_HEADS = 32  # of a program that turns queries


def dense_mla(
    up_RX: Tensor,
    made_SM: Tensor,
    rotary_SR: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    out: Fp8Rows,
    *,
    first_position: int,
    scale: float,
) -> None:
    """out: [R, N * 128], softmax-weighted values of every head, quantised, a group a head.

    up_RX: bf16, a head's 128 + 64 columns after the other's, not yet turned; rows are the tokens from
    first_position on, and each sees the keys up to its own. made_SM: bf16, of every key up to the last row's
    position, head by head 128 of the key and 128 values. rotary_SR: fp16 [S, 64], turned.
    """
    heads = _heads(up_RX, made_SM, rotary_SR, out, first_position)
    rows = len(up_RX)
    if not rows:
        return
    turned_RY = turn_queries(up_RX, cos_TP, sin_TP, first_position=first_position, heads=heads)
    pairs = heads * triton.cdiv(triton.cdiv(rows, TILE), 2)
    dense_mla_kernel[(min(pairs, multiprocessors(up_RX.device)),)](
        operand(up_RX, rows=TILE // 2),
        operand(turned_RY, rows=TILE // 2, width=ROTARY_DIMS),
        operand(made_SM, rows=TILE),
        operand(rotary_SR, rows=TILE, width=ROTARY_DIMS),
        out.values_RK,
        out.scale_GR,
        out.scale_GR.stride(0),
        rows,
        first_position,
        scale * math.log2(math.e),
        HEADS=heads,
        num_warps=4,
    )


def turn_queries(up_RX: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, first_position: int, heads: int) -> Tensor:
    """fp16 [R, N * 64]: the rotary part of every head's query, turned by its row's position."""
    turned_RY = up_RX.new_empty(len(up_RX), heads * ROTARY_DIMS, dtype=torch.float16)
    if len(up_RX):
        _turn_queries[(len(up_RX), heads // TURNED_HEADS)](
            up_RX,
            cos_TP,
            sin_TP,
            turned_RY,
            first_position,
            X=up_RX.shape[1],
            N=heads,
            P=ROTARY_DIMS // 2,
            BLOCK_N=TURNED_HEADS,
        )
    return turned_RY


def dense_mla_reference(
    up_RX: Tensor,
    made_SM: Tensor,
    rotary_SR: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    *,
    first_position: int,
    scale: float,
) -> Tensor:
    """fp64 [R, N * 128] before it is quantised."""
    rows, num_keys = len(up_RX), first_position + len(up_RX)
    made_SNHV = made_SM[:num_keys].double().view(num_keys, -1, 2, GROUP)
    heads = made_SNHV.shape[1]
    query_RNC = up_RX[:, : heads * QUERY_DIMS].double().view(rows, heads, QUERY_DIMS)
    cos_R1P, sin_R1P = (table[first_position:num_keys, None].double() for table in (cos_TP, sin_TP))
    first, second = query_RNC[..., GROUP:].chunk(2, -1)
    turned_RNR = torch.cat([first * cos_R1P - second * sin_R1P, second * cos_R1P + first * sin_R1P], -1)
    score_NRS = torch.einsum("rnc,snc->nrs", query_RNC[..., :GROUP], made_SNHV[:, :, 0])
    score_NRS += torch.einsum("rnc,sc->nrs", turned_RNR, rotary_SR[:num_keys].double())
    position_S = torch.arange(num_keys, device=up_RX.device)
    score_NRS.masked_fill_(position_S > position_S[first_position:, None], -math.inf)
    weight_NRS = (score_NRS * scale).softmax(-1)
    return torch.einsum("nrs,snv->rnv", weight_NRS, made_SNHV[:, :, 1]).flatten(1)


def _heads(up_RX: Tensor, made_SM: Tensor, rotary_SR: Tensor, out: Fp8Rows, first_position: int) -> int:
    rows, heads, device = len(up_RX), made_SM.shape[1] // (2 * GROUP), up_RX.device
    if first_position < 0 or len(made_SM) != first_position + rows:
        raise ValueError(f"{rows} rows from position {first_position} on see other than {len(made_SM)} keys")
    if heads % TURNED_HEADS or up_RX.shape[1] < heads * QUERY_DIMS:
        raise ValueError(f"{heads} heads in {up_RX.shape[1]} columns: expected a multiple of {TURNED_HEADS}")
    check_tensor("up_RX", up_RX, torch.bfloat16, tuple(up_RX.shape), device)
    check_tensor("made_SM", made_SM, torch.bfloat16, (len(made_SM), heads * 2 * GROUP), device)
    check_tensor("rotary_SR", rotary_SR, torch.float16, (len(made_SM), ROTARY_DIMS), device)
    out.check("out")
    if out.values_RK.shape != (rows, heads * GROUP):
        raise ValueError(f"out is {list(out.values_RK.shape)}: expected {[rows, heads * GROUP]}")
    return heads


@triton.jit(do_not_specialize=["first_position"])  # type: ignore[untyped-decorator,unused-ignore]
def _turn_queries(  # type: ignore[no-untyped-def]
    up_ptr,  # noqa: ANN001
    cos_ptr,  # noqa: ANN001
    sin_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    first_position,  # noqa: ANN001
    X: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    pair = tl.arange(0, P)[None, :]
    cos = tl.load(cos_ptr + (first_position + row) * P + pair)
    sin = tl.load(sin_ptr + (first_position + row) * P + pair)
    query_at = up_ptr + row * X + head * (128 + 2 * P) + 128 + pair
    first = tl.load(query_at).to(tl.float32)
    second = tl.load(query_at + P).to(tl.float32)
    out_at = out_ptr + (row * N + head) * (2 * P) + pair
    tl.store(out_at, (first * cos - second * sin).to(tl.float16))
    tl.store(out_at + P, (second * cos + first * sin).to(tl.float16))
