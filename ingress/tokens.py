"""Text to token ids and back, byte-level BPE only.

Text never becomes a special token: those are spliced in by id, from the segments of ingress/encoding.py.
Knows nothing of chat messages. `encode_text` and `encode_prompt` take about a microsecond per byte, mostly
without the GIL (in the `tokenizers` library): an event loop calls them in a thread for long texts.
A Tokenizer may be used by several threads at once; a Detokenizer belongs to one sequence.

Errors: TokenizerError > UnencodableText.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from ingress.patterns import patterns_of, repeats_repetition
from ingress.specials import Segment, Special


class TokenizerError(ValueError):
    """tokenizer.json is missing, is not of the kind we read, or lacks a token that a prompt needs."""


class UnencodableText(TokenizerError):  # noqa: N818 - named for what happened, as the rest of the tree
    """The text holds half a surrogate pair: UTF-8 cannot carry it, so neither can a byte-level tokenizer."""


class Tokenizer:
    """One checkpoint's tokenizer.

    Ids that the file does not know (a model's vocabulary may be padded) decode to nothing. directory: of the
    file. adds_bos: a text by itself begins with the BOS token, as tokenizer_config.json beside it says.
    """

    def __init__(
        self, vocabulary: _Vocabulary, plain: tokenizers.Tokenizer, directory: Path, *, adds_bos: bool = False
    ) -> None:
        self.directory, self.adds_bos = directory, adds_bos
        self._vocabulary = vocabulary
        self._plain = plain  # knows the ordinary tokens alone, so it cannot emit any other

    @staticmethod
    def from_file(path: Path) -> Tokenizer:
        """Read a tokenizer.json; raises TokenizerError that names the file."""
        raw = _read(path)
        try:
            vocabulary = _vocabulary(raw)
            _check_patterns(raw)
            plain = _plain_tokenizer(raw, vocabulary.added)
            tokenizer = Tokenizer(vocabulary, plain, path.parent, adds_bos=_adds_bos(path.parent))
            tokenizer._check_byte_level()
            return tokenizer
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise TokenizerError(f"{path} is not a tokenizer.json: {type(error).__name__} {error}") from None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocabulary.size

    def special_id(self, text: str) -> int | None:
        """The id of the added token spelled `text`; None for ordinary tokens and unknown texts."""
        return self._vocabulary.added.get(text)

    def encode_text(self, text: str) -> list[int]:
        """Ids of ordinary tokens only, whatever the text; raises UnencodableText."""
        try:
            text.encode()
        except UnicodeEncodeError:  # said here, because the library calls it a TypeError
            raise UnencodableText("the text holds half a surrogate pair, which is no character") from None
        # A batch of one: `encode` holds the GIL to its end, so a long text would stop every stream.
        return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_prompt(self, segments: Sequence[Segment]) -> list[int]:
        """Specials by their ids, texts by `encode_text`; raises TokenizerError where a special is unknown."""
        ids: list[int] = []
        for segment in segments:
            if isinstance(segment, Special):
                ids.append(self._required_id(segment.text))
            else:
                ids.extend(self.encode_text(segment))
        return ids

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Without `keep_special`, the added tokens that tokenizer.json flags as special decode to nothing.
        """
        token_bytes = self._vocabulary.table(keep_special=keep_special)
        return b"".join(token_bytes.get(token_id, b"") for token_id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token (special ones too), which need not be whole characters; b"" if unknown."""
        return self._vocabulary.all_bytes.get(token_id, b"")

    def detokenizer(self, *, keep_special: bool = False) -> Detokenizer:
        """A fresh stream decoder whose pieces join to what `decode` returns."""
        return Detokenizer(self._vocabulary.table(keep_special=keep_special))

    def _check_byte_level(self) -> None:
        probe = "\0\nx\u00e9\uff5c"  # what a pre-tokenizer that is not byte-level would lose
        if not self.decode(self.encode_text(probe)).endswith(probe):
            raise TokenizerError("its pre-tokenizer is not byte-level: some texts would lose characters")

    def _required_id(self, text: str) -> int:
        token_id = self.special_id(text)
        if token_id is None:
            raise TokenizerError(f"the vocabulary lacks {text!r}: no tokenizer of DeepSeek-V3.2")
        return token_id


class Detokenizer:
    """Token ids of one sequence to text, as they come; holds back at most three bytes."""

    def __init__(self, token_bytes: Mapping[int, bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that `token_ids` complete; a character still short of bytes waits for the next push."""
        return self._decoder.decode(b"".join(self._token_bytes.get(token_id, b"") for token_id in token_ids))

    def flush(self) -> str:
        """What was held back, as U+FFFD; the detokenizer is then as new."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Vocabulary:
    """all_bytes: of every token. text_bytes: without those flagged special. added: spelling -> id."""

    all_bytes: Mapping[int, bytes]
    text_bytes: Mapping[int, bytes]
    added: Mapping[str, int]

    @property
    def size(self) -> int:
        return max(self.all_bytes) + 1

    def table(self, *, keep_special: bool) -> Mapping[int, bytes]:
        return self.all_bytes if keep_special else self.text_bytes


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's choice)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TokenizerError(f"{path} is missing: a checkpoint directory holds tokenizer.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise TokenizerError(f"{path} holds a {type(raw).__name__}: must be a JSON object")
    return raw


def _adds_bos(directory: Path) -> bool:
    """False where nothing is said of it."""
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return False
    said = _read(path).get("add_bos_token")
    if said is not None and not isinstance(said, bool):
        raise TokenizerError(f"add_bos_token of {path} is {said!r}: must be true or false")
    return bool(said)


def _vocabulary(raw: Mapping[str, Any]) -> _Vocabulary:
    model, decoder = raw["model"], raw["decoder"]
    if model["type"] != "BPE" or decoder["type"] != "ByteLevel":
        raise TokenizerError(
            f"{model['type']} with decoder {decoder['type']}: only BPE with ByteLevel is read"
        )
    added = {str(token["content"]): int(token["id"]) for token in raw["added_tokens"]}
    special_ids = {int(token["id"]) for token in raw["added_tokens"] if token["special"]}
    ordinary = {token: int(token_id) for token, token_id in model["vocab"].items() if token not in added}
    _check_ids(ordinary, added, model["vocab"])
    alphabet = byte_alphabet()
    all_bytes = {token_id: _bytes_of(token, alphabet) for token, token_id in ordinary.items()}
    all_bytes |= {token_id: token.encode() for token, token_id in added.items()}
    text_bytes = {token_id: data for token_id, data in all_bytes.items() if token_id not in special_ids}
    return _Vocabulary(all_bytes=all_bytes, text_bytes=text_bytes, added=added)


def _check_patterns(raw: Mapping[str, Any]) -> None:
    """A client's text must not be able to keep a pattern busy for ever."""
    for pattern in patterns_of([raw.get("normalizer"), raw.get("pre_tokenizer")]):
        if repeats_repetition(pattern):
            raise TokenizerError(
                f"the pattern {pattern[:40]!r} repeats what already repeats: a text could take for ever"
            )


def _check_ids(ordinary: Mapping[str, int], added: Mapping[str, int], listed: Mapping[str, int]) -> None:
    """Ordinary and added tokens are told apart by id, and every byte has an ordinary token."""
    for token, token_id in added.items():
        if listed.get(token, token_id) != token_id:
            raise TokenizerError(
                f"added token {token!r} has id {token_id}, but {listed[token]} in the vocabulary"
            )
    ids = [*ordinary.values(), *added.values()]
    if len(set(ids)) != len(ids) or min(ids) < 0:
        raise TokenizerError("two tokens share an id, or an id is negative")
    missing = byte_alphabet().keys() - ordinary.keys()
    if missing:
        raise TokenizerError(
            f"{len(missing)} of the 256 bytes have no token: some texts could not be encoded"
        )


def _bytes_of(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # no byte-level spelling: the library's decoder takes such a token as plain text
        return token.encode()


def _plain_tokenizer(raw: Mapping[str, Any], added: Collection[str]) -> tokenizers.Tokenizer:
    """The file's tokenizer without its added tokens, which thus no text can become."""
    model = raw["model"]
    plain_model = {
        **model,
        "vocab": {token: token_id for token, token_id in model["vocab"].items() if token not in added},
        "merges": [merge for merge in model["merges"] if not _touches(merge, added)],
        "unk_token": None,  # never needed: every byte has a token
        "dropout": None,  # one text, one tokenisation
    }
    plain = {
        **raw,
        "model": plain_model,
        "added_tokens": [],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise TokenizerError(f"the tokenizers library refuses it: {error}") from None


def _touches(merge: str | Sequence[str], added: Collection[str]) -> bool:
    """Whether an added token is a part or the outcome of `merge`, which is "a b" or ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in added or right in added or left + right in added
