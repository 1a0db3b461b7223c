"""The embedded model's tokenizer.json: a small byte-level BPE.

Learned from samples. A common word is one token together with the space before it; every other word is split
the same way wherever it stands, so that a name can be copied piece by piece; digits stand alone. Knows
nothing of how samples are drawn.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from demo.sample import Sample
from ingress.encoding import encode_history
from ingress.tokenizer_file import NUM_SPECIALS, write_byte_tokenizer

COMMON_SHARE = 0.004  # a word in more of the samples than this is common
MAX_COMMON = 320
_WORD = re.compile(r"[A-Za-z]+")


def write_vocabulary(directory: Path, texts: Sequence[str], vocab_size: int) -> None:
    """Write tokenizer.json and tokenizer_config.json; the same texts write the same bytes."""
    write_byte_tokenizer(directory)  # the specials, their ids and everything around the merges
    path = directory / "tokenizer.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    specials = {token["content"]: token["id"] for token in raw["added_tokens"]}
    splitter = word_splitter(common_words(texts))
    learned = _learn(texts, splitter, vocab_size - NUM_SPECIALS)
    vocab = {token: rank + NUM_SPECIALS for token, rank in learned["vocab"].items()}
    raw["model"]["vocab"] = specials | dict(sorted(vocab.items(), key=lambda item: item[1]))
    raw["model"]["merges"] = learned["merges"]
    raw["pre_tokenizer"] = splitter
    path.write_text(json.dumps(raw, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")


def vocabulary_text(sample: Sample) -> str:
    """What a sample's ordinary tokens spell, special tokens left out."""
    tools = list(sample.tools) or None
    whole = encode_history([*sample.messages, sample.answer], thinking=sample.thinking, tools=tools)
    return "".join(segment if isinstance(segment, str) else "\n" for segment in whole)


def common_words(texts: Sequence[str]) -> list[str]:
    """Words that many texts share, longest first so that a pattern prefers them."""
    seen = Counter(word for text in texts for word in set(_WORD.findall(text)))
    least = max(2, int(COMMON_SHARE * len(texts)))
    # A set's order differs from process to process, so equal counts are told apart by the word itself.
    ranked = sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    frequent = [word for word, count in ranked[:MAX_COMMON] if count >= least]
    return sorted(frequent, key=lambda word: (-len(word), word))


def word_splitter(common: Iterable[str]) -> dict[str, Any]:
    """The `pre_tokenizer` of tokenizer.json."""
    words = "|".join(common)
    pattern = rf" ?(?:{words})(?![A-Za-z])|[A-Za-z]+|[0-9]|\s|[^A-Za-z0-9\s]+"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _learn(texts: Iterable[str], splitter: dict[str, Any], size: int) -> dict[str, Any]:
    """A BPE model's vocab and merges."""
    tokenizer = Tokenizer(models.BPE())
    pattern = splitter["pretokenizers"][0]["pattern"]["Regex"]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
    )
    tokenizer.train_from_iterator(texts, trainer)
    learned: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return learned
