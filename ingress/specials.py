"""The tokens that only the template writes.

A prompt is a list of segments: `Special` for these, plain `str` for all that anyone wrote. Knows nothing of
their ids (ingress/tokens.py) and nothing of where in a prompt they stand (ingress/encoding.py).
"""

# The special tokens are spelled with bars that are not ASCII.
# ruff: noqa: RUF001

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Special:
    """A token that only the template writes; `text` is its spelling in the vocabulary."""

    text: str


Segment = Special | str

BOS = Special("<｜begin▁of▁sentence｜>")
EOS = Special("<｜end▁of▁sentence｜>")
USER = Special("<｜User｜>")
ASSISTANT = Special("<｜Assistant｜>")
THINK = Special("<think>")
END_THINK = Special("</think>")
DSML = Special("｜DSML｜")
TEMPLATE_SPECIALS = (BOS, EOS, USER, ASSISTANT, THINK, END_THINK, DSML)
FIM_BEGIN = Special("<｜fim▁begin｜>")
FIM_HOLE = Special("<｜fim▁hole｜>")
FIM_END = Special("<｜fim▁end｜>")
