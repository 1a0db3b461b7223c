"""A byte-level tokenizer.json with V3.2's special tokens.

For models without a trained vocabulary, as the embedded one: one token per byte, no merges. Knows nothing of
the model. The ids are fixed (0 begin, 1 end of sentence, 2 padding, 16 + b the byte b), the bytes
deterministic.
"""

# The special tokens are spelled with bars that are not ASCII.
# ruff: noqa: RUF001

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ingress.specials import (
    ASSISTANT,
    BOS,
    DSML,
    END_THINK,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    THINK,
    USER,
)
from ingress.tokens import byte_alphabet

PAD = "<｜▁pad▁｜>"
NUM_SPECIALS = 16  # so that the vocabulary, 272, is a multiple of 16


def write_byte_tokenizer(directory: Path, vocab_size: int = 0) -> int:
    """Write tokenizer.json and tokenizer_config.json into `directory`; returns the vocabulary's size.

    vocab_size: of a model with more tokens; no text becomes one of those, each reads as its number.
    """
    directory.mkdir(parents=True, exist_ok=True)
    specials = _specials()
    vocab = {token: token_id for token_id, token in enumerate(specials)}
    vocab |= {character: NUM_SPECIALS + byte for character, byte in _by_byte()}
    blank = _by_byte()[ord(" ")][0]
    vocab |= {f"{blank}{token_id}": token_id for token_id in range(len(vocab), vocab_size)}
    _write_json(directory / "tokenizer.json", _tokenizer(specials, vocab))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    return len(vocab)


def _specials() -> list[str]:
    named = [
        BOS.text,
        EOS.text,
        PAD,
        USER.text,
        ASSISTANT.text,
        THINK.text,
        END_THINK.text,
        DSML.text,
        FIM_BEGIN.text,
        FIM_HOLE.text,
        FIM_END.text,
    ]
    return named + [f"<｜place▁holder▁no▁{rank}｜>" for rank in range(NUM_SPECIALS - len(named))]


def _by_byte() -> list[tuple[str, int]]:
    return sorted(byte_alphabet().items(), key=lambda item: item[1])


def _tokenizer(specials: list[str], vocab: dict[str, int]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(token_id, token) for token_id, token in enumerate(specials)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def _added_token(token_id: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": token, **flags}


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS.text,
        "eos_token": EOS.text,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes((json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())
