"""Text to token ids and back; special tokens only where the template put them."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

import json
import threading
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingress.encoding import encode_messages, render
from ingress.specials import BOS, EOS, TEMPLATE_SPECIALS, THINK, USER, Special
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer, TokenizerError, UnencodableText, byte_alphabet

NUM_SPECIALS = 16
SPECIAL_TEXTS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜▁pad▁｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    "</think>",
    "｜DSML｜",
    "<｜fim▁begin｜>",
    "<｜fim▁hole｜>",
    "<｜fim▁end｜>",
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_byte_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer.from_file(directory / "tokenizer.json")


@pytest.fixture(scope="module")
def library(directory):
    """The same file in the tokenizers library itself, special tokens and all."""
    return tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def merged_path(directory, tmp_path_factory):
    """A vocabulary built to be hostile: ordinary merges that lead up to, and into, added tokens.

    `<think>` is an added token that is not flagged special (as in DeepSeek's own files), is in the model's
    vocabulary, and is what the merges make of the text "<think>"; whole words skip the merges.
    """
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = raw["model"]["vocab"]
    merges = [
        ["<", "t"],
        ["h", "i"],
        ["n", "k"],
        ["<t", "hi"],
        ["<thi", "nk"],
        ["<think", ">"],
        ["a", "<think>"],
    ]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    raw["model"].update(merges=merges, ignore_merges=True, dropout=0.5, unk_token="<think>")
    raw["added_tokens"][5]["special"] = False
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS.text, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS.text: {"id": BOS.text, "ids": [0], "tokens": [BOS.text]}},
    }
    raw["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path_factory.mktemp("merged") / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def merged(merged_path):
    return Tokenizer.from_file(merged_path)


# The file


def test_the_byte_tokenizer_has_272_fixed_ids(tokenizer, directory):
    assert write_byte_tokenizer(directory) == 272 == tokenizer.vocab_size
    assert [tokenizer.special_id(text) for text in SPECIAL_TEXTS] == list(range(11))
    assert tokenizer.encode_text("\0A") == [16, 16 + ord("A")]
    assert all(tokenizer.token_bytes(16 + byte) == bytes([byte]) for byte in range(256))


def test_the_byte_tokenizer_is_the_same_bytes_every_time(directory, tmp_path):
    write_byte_tokenizer(tmp_path / "new" / "folder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (directory / name).read_bytes()


def test_the_byte_tokenizer_loads_in_transformers_with_the_same_ids(transformers, directory, tokenizer):
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 1, 2)
    assert len(theirs) == 272
    text = "hello wörld 👋\n"
    assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode_text(text)


def test_every_template_special_is_in_the_byte_tokenizer(tokenizer):
    ids = tokenizer.encode_prompt(TEMPLATE_SPECIALS)
    assert len(set(ids)) == len(TEMPLATE_SPECIALS)
    assert max(ids) < NUM_SPECIALS


# Text to ids


@pytest.mark.parametrize(
    "text", [*SPECIAL_TEXTS, "".join(SPECIAL_TEXTS), "a<think>b", "<｜place▁holder▁no▁0｜>"]
)
def test_a_typed_special_is_ordinary_text(tokenizer, library, text):
    assert min(library.encode(text).ids) < NUM_SPECIALS, "the library alone would have made a special of it"
    ids = tokenizer.encode_text(text)
    assert ids == [NUM_SPECIALS + byte for byte in text.encode()]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["<think>", "a<think>", "x <think> y", "a<think>" * 3])
def test_merges_that_build_an_added_token_are_not_used(merged, text):
    ids = merged.encode_text(text)
    assert merged.special_id("<think>") == 5
    assert min(ids) >= NUM_SPECIALS
    assert merged.decode(ids) == text


def test_ordinary_merges_are_used(merged):
    assert merged.encode_text("<think") == [merged.encode_text("<think>")[0]]
    assert len(merged.encode_text("<think>")) == 2


def test_the_file_s_dropout_truncation_and_template_do_not_touch_a_text(merged):
    text = "hi nk " * 50
    assert {tuple(merged.encode_text(text)) for _ in range(10)} == {tuple(merged.encode_text(text))}
    assert merged.decode(merged.encode_text(text), keep_special=True) == text


@settings(deadline=None)
@given(st.text() | st.lists(st.sampled_from([*SPECIAL_TEXTS, "<", ">", "｜", "thi", "nk", "a"])).map("".join))
def test_no_text_becomes_a_special_and_all_text_survives(tokenizer, merged, text):
    for subject in (tokenizer, merged):
        ids = subject.encode_text(text)
        assert all(token_id >= NUM_SPECIALS for token_id in ids)
        assert subject.decode(ids) == text


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(UnencodableText, match="surrogate"):
        tokenizer.encode_text("a\ud83d")


def test_one_tokenizer_serves_several_threads(tokenizer):
    texts = [f"text {number} é " * 200 for number in range(8)]
    results = {}

    def encode(text):
        results[text] = tokenizer.encode_text(text)

    threads = [threading.Thread(target=encode, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {text: [NUM_SPECIALS + byte for byte in text.encode()] for text in texts}


# Prompts to ids

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Zürich?"},
    {
        "role": "assistant",
        "reasoning_content": "look it up",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"city": "Zürich"}'}}],
    },
    {"role": "tool", "content": "☀️"},
]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def test_a_harmless_conversation_has_the_ids_of_its_rendered_text(tokenizer, library):
    segments = encode_messages(MESSAGES, thinking=True, tools=TOOLS)
    assert tokenizer.encode_prompt(segments) == library.encode(render(segments)).ids


@pytest.mark.parametrize("text", SPECIAL_TEXTS)
def test_a_conversation_has_the_same_specials_whatever_its_texts(tokenizer, text):
    def specials(content):
        messages = [{**message, "content": content} for message in MESSAGES]
        ids = tokenizer.encode_prompt(encode_messages(messages, thinking=True, tools=TOOLS))
        return [token_id for token_id in ids if token_id < NUM_SPECIALS]

    assert specials(text) == specials("plain")


def test_user_text_is_spliced_between_the_template_s_ids(tokenizer):
    ids = tokenizer.encode_prompt([BOS, USER, "<think>", THINK])
    assert ids == [0, 3, *(NUM_SPECIALS + byte for byte in b"<think>"), 5]


def test_a_special_that_the_vocabulary_lacks_is_named(tokenizer):
    with pytest.raises(TokenizerError, match="<｜nothing｜>"):
        tokenizer.encode_prompt([Special("<｜nothing｜>")])
    with pytest.raises(TokenizerError, match="'A'"):
        tokenizer.encode_prompt([Special("A")])


def test_only_added_tokens_have_a_special_id(tokenizer):
    assert tokenizer.special_id("<think>") == 5
    assert tokenizer.special_id("A") is None
    assert tokenizer.special_id("") is None


# Ids to text


def test_specials_are_dropped_unless_kept(tokenizer):
    ids = tokenizer.encode_prompt([BOS, "a", EOS, "b"])
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, keep_special=True) == "<｜begin▁of▁sentence｜>a<｜end▁of▁sentence｜>b"


def test_an_added_token_that_is_not_flagged_special_stays(merged):
    assert merged.decode([0, 5]) == "<think>"


@pytest.mark.parametrize("token_id", [-1, -272, 272, 10**9, 2**70])
def test_ids_outside_the_vocabulary_decode_to_nothing(tokenizer, token_id):
    letter = 16 + ord("a")
    assert tokenizer.decode([letter, token_id, letter], keep_special=True) == "aa"
    assert tokenizer.token_bytes(token_id) == b""
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push([letter, token_id]) == "a"
    assert detokenizer.flush() == ""


token_ids = (
    st.integers(0, 271) | st.integers(-3, 400) | st.sampled_from([16 + byte for byte in "é€😀".encode()])
)
encoded_texts = st.text(max_size=6).map(lambda text: [16 + byte for byte in text.encode()])
sequences = st.lists(token_ids.map(lambda token_id: [token_id]) | encoded_texts, max_size=12).map(
    lambda pieces: [token_id for piece in pieces for token_id in piece]
)


@settings(deadline=None)
@given(sequences, st.booleans())
def test_decode_agrees_with_the_library(tokenizer, library, ids, keep_special):
    known = [token_id for token_id in ids if 0 <= token_id < 272]
    expected = library.decode(known, skip_special_tokens=not keep_special)
    assert tokenizer.decode(ids, keep_special=keep_special) == expected


@settings(deadline=None)
@given(sequences, st.lists(st.integers(0, 80), max_size=20), st.booleans())
@example([16 + byte for byte in "👩‍👩‍👧 é".encode()], list(range(40)), False)
@example([16 + 0xE2, 5, 16 + 0x82, 16 + 0xAC], [1, 2, 3], True)
@example([16 + 0xF0, 16 + 0x9F], [1], False)
def test_any_split_of_a_stream_joins_to_the_whole_text(tokenizer, ids, cuts, keep_special):
    detokenizer = tokenizer.detokenizer(keep_special=keep_special)
    bounds = sorted({0, len(ids), *(min(cut, len(ids)) for cut in cuts)})
    pieces = [detokenizer.push(ids[start:end]) for start, end in pairwise(bounds)]
    assert "".join(pieces) + detokenizer.flush() == tokenizer.decode(ids, keep_special=keep_special)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=10))
def test_a_stream_of_good_text_never_shows_a_replacement_character_of_its_own(tokenizer, text):
    detokenizer = tokenizer.detokenizer()
    shown = ""
    for token_id in tokenizer.encode_text(text):
        shown += detokenizer.push([token_id])
        assert text.startswith(shown)
    assert shown == text
    assert detokenizer.flush() == ""


def test_a_character_is_held_back_until_its_last_byte(tokenizer):
    detokenizer = tokenizer.detokenizer()
    assert [detokenizer.push([16 + byte]) for byte in "😀".encode()] == ["", "", "", "😀"]


def test_a_broken_character_is_released_as_soon_as_it_is_known_to_be_broken(tokenizer):
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push([16 + 0xF0, 16 + 0x9F]) == ""
    assert detokenizer.push([16 + ord("a")]) == "\ufffda"


def test_a_flushed_detokenizer_is_as_new(tokenizer):
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push([16 + 0xE2]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push([16 + 0x82, 16 + ord("a")]) == "\ufffda"
    assert detokenizer.flush() == ""


def test_the_byte_alphabet_is_that_of_the_library():
    assert set(byte_alphabet()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


# Files that are refused


def altered(directory, tmp_path, change):
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    change(raw)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.pop("model"), "not a tokenizer.json"),
        (lambda raw: raw.update(decoder=None), "not a tokenizer.json"),
        (lambda raw: raw["added_tokens"][0].pop("id"), "not a tokenizer.json"),
        (lambda raw: raw["model"].update(type="Unigram"), "only BPE"),
        (lambda raw: raw.update(decoder={"type": "Metaspace"}), "only BPE with ByteLevel"),
        (lambda raw: raw.update(pre_tokenizer=None), "pre-tokenizer is not byte-level"),
        (lambda raw: raw["added_tokens"][0].update(id=9999), "has id 9999, but 0"),
        (lambda raw: raw["model"]["vocab"].update(A=17), "share an id"),
        (
            lambda raw: raw["added_tokens"].append({**raw["added_tokens"][0], "content": "new", "id": 20}),
            "share an id",
        ),
        (lambda raw: raw["model"]["vocab"].pop("A"), "1 of the 256 bytes"),
        (lambda raw: raw["model"].update(merges=[["A", "BC"]]), "library refuses it"),
    ],
)
def test_a_file_that_cannot_serve_is_refused_with_its_name(directory, tmp_path, change, words):
    path = altered(directory, tmp_path, change)
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)


def test_a_config_that_does_not_say_yes_or_no_to_bos_is_refused_with_its_name(directory, tmp_path):
    path = altered(directory, tmp_path, lambda raw: None)
    config = path.parent / "tokenizer_config.json"
    config.write_text('{"add_bos_token": "yes"}')
    with pytest.raises(
        TokenizerError, match=r"add_bos_token of .* is 'yes': must be true or false"
    ) as caught:
        Tokenizer.from_file(path)
    assert str(config) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"), [(None, "is missing"), (b"{", "as JSON"), (b"[]", "holds a list")]
)
def test_a_file_that_is_no_json_object_is_refused_with_its_name(tmp_path, content, words):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TokenizerError, match=words) as caught:
        Tokenizer.from_file(path)
    assert str(path) in str(caught.value)
