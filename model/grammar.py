"""Grammars of a vocabulary, compiled.

A text in Lark's syntax (or GBNF) to a matcher that says which tokens may come next. The parsing is
llguidance's; ours are the limits. Knows nothing of logits and of who asked: the ingress tries a grammar in a
process that may be killed, an attention actor makes the same matcher again
(docs/decisions/015-constrained-decoding.md).

Errors: GrammarError.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from model.sampling import FOREIGN

MAX_GRAMMAR_CHARS = 1 << 17
# The most that a grammar may cost. The lexer burns about 50,000 of its fuel a millisecond while it is
# compiled and 14,000 while a mask is computed; one of its states takes 1 to 2 kB.
COMPILE_FUEL = 1_000_000
MASK_FUEL = 100_000
MASK_ITEMS = 20_000
LEXER_STATES = 20_000
GRAMMAR_SYMBOLS = 200_000
# Ways to read the text so far. A schema has four for each property that may be left out, and they are cheap;
# in a grammar that says the same in many ways each costs as much again for every other.
ROW_ITEMS = 1000
FOREIGN_ROW_ITEMS = 150


class GrammarError(ValueError):
    """No grammar, or one that costs too much. The words are the library's, about the text that it was
    given."""


class Grammars:
    """Compiles for one vocabulary.

    directory: of the checkpoint; its tokenizer.json is read, of which every added token counts as special, so
    that no text can become one. vocab_size: of the model, None: the tokenizer's own. end_ids: what ends a
    text.
    """

    def __init__(self, directory: Path, *, vocab_size: int | None, end_ids: Sequence[int]) -> None:
        self.end_ids = tuple(end_ids)
        self._tokenizer = LLTokenizer(_with_specials(directory), n_vocab=vocab_size, eos_token=list(end_ids))

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.vocab_size)

    def compile(self, grammar: str) -> LLMatcher:
        """At the beginning of the text; raises GrammarError. Holds the GIL only to read GBNF."""
        if len(grammar) > MAX_GRAMMAR_CHARS:
            raise GrammarError(f"the grammar has {len(grammar)} characters: at most {MAX_GRAMMAR_CHARS}")
        is_foreign = grammar.startswith(FOREIGN)
        try:
            lark = any_to_lark(grammar.removeprefix(FOREIGN))
        except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
            raise GrammarError(f"neither Lark nor GBNF: {error}") from None
        limits = _limits(FOREIGN_ROW_ITEMS if is_foreign else ROW_ITEMS)
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher


def _limits(row_items: int) -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=row_items,
        initial_lexer_fuel=COMPILE_FUEL,
        step_lexer_fuel=MASK_FUEL,
        step_max_items=MASK_ITEMS,
        max_lexer_states=LEXER_STATES,
        max_grammar_size=GRAMMAR_SYMBOLS,
        verbose_errors=False,
    )


def special_id(directory: Path, text: str) -> int | None:
    """The id of the added token spelled `text` in the directory's tokenizer.json."""
    added = _read(directory)["added_tokens"]
    return next((int(token["id"]) for token in added if token["content"] == text), None)


def _with_specials(directory: Path) -> str:
    raw = _read(directory)
    for token in raw["added_tokens"]:
        token["special"] = True
    return json.dumps(raw)


def _read(directory: Path) -> dict[str, Any]:
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert isinstance(raw, dict), "the ingress reads it first (ingress/tokens.py)"
    return raw
