"""A shape that trains in seconds, for tests of the trainer."""

from __future__ import annotations

from model.tiny import TinyShape

SHAPE = TinyShape(
    hidden=32,
    layers=2,
    experts=32,
    moe_intermediate=16,
    dense_intermediate=48,
    heads=2,
    q_lora=24,
    kv_lora=16,
    nope=8,
    rope=8,
    value=8,
    index_heads=4,
    index_dim=16,
    index_topk=6,
    context=256,
)
