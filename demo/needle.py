"""One value to find in a long text or list.

Filler of made-up words hides facts such as "The code of Drenio is 48213."; one is asked for. Knows nothing of
tokens: lengths are in characters, `chars_per_token` of them for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from demo import words
from demo.lexicon import ADJECTIVES, NOUNS, THINGS
from demo.phrases import say
from demo.sample import Sample, Split, Task

SHORTEST_TOKENS, LONGEST_TOKENS = 80, 900  # of training; an evaluator asks for more with `draw_at`
LONGEST_LIST_TOKENS = 500
CHARS_PER_TOKEN = 3.2
LIST_SHARE = 0.25
WORD_VALUE_SHARE = 0.25
VOCABULARY = 16  # made-up words of one filler
MOST_OTHERS = 6  # facts that are not asked for
TOKENS_PER_OTHER = 60
TOKENS_PER_ENTRY = 12.4
TOKENS_OF_QUESTION = 30

# Shares of the kinds of facts, such as "plim" or "hidden voltage": too many to be remembered.
MADE_UP_SHARE = 0.45
TWO_WORDS_SHARE = 0.3

FACTS = (
    "[|Remember that |Please note: |By the way, |Do not forget: |Note that ]the {kind} of {name} is {value}.",
    "[|Remember that |Please note: |By the way, |Do not forget: |Note that ]{name}'s {kind} is {value}.",
    "[|Remember that |Please note: |By the way, |Note that ]the {kind} for {name} is {value}.",
    "[|Remember that |Please note: |By the way, |Note that ]{name} [has|was given|got] the {kind} {value}.",
)
QUESTIONS = (
    "[Tell me|Find|Please tell me|Give me|Please find|I need] the {kind} of {name}.",
    "[Tell me|Find|Please tell me|Give me|Please find|I need] {name}'s {kind}.",
    "[Which|What] {kind} [does {name} have|was {name} given]?",
    "What is the {kind} [of|for] {name}?",
    "What is {name}'s {kind}?",
    "What [is|was] the {kind} given to {name}?",
)
HELD_OUT_HEADS = 1
LIST_HEADS = ("Values:", "Here is a list.", "The list:", "Names and values:", "Entries:")
ANSWER = "The {kind} of {name} is {value}."

# The held-out openings and clauses are made of words of the others, so that both splits cost as many tokens.
HELD_OUT_OPENINGS = 3
OPENINGS = (
    "In the morning",
    "After the rain",
    "Near the old house",
    "On the way home",
    "At the end of the day",
    "Long before the winter",
    "Under the bridge",
    "Every day",
    "In the small garden",
    "When the light was low",
    "On the other side of the river",
    "Some time later",
    "Behind the green door",
    "Far from the road",
    "In the evening",
    "With the first snow",
    "After the winter",
    "Behind the old bridge",
    "At the end of the road",
)
HELD_OUT_CLAUSES = 4
CLAUSES = (
    "the %s and the %s went down to the water",
    "a %s was waiting for the %s",
    "nobody could see the %s or the %s",
    "the %s gave a small stone to the %s",
    "every %s had a good reason to wait for the %s",
    "the old %s came back with a %s",
    "there was a %s next to the green %s",
    "we heard the %s talk about the long %s",
    "the %s was bigger than any other %s",
    "they found a %s and a broken %s",
    "the people of the %s liked the young %s",
    "some of the %s fell into the dark %s",
    "the wind took the %s away from the %s",
    "a young %s asked the %s for help",
    "the road to the %s went past the %s",
    "the last %s and the first %s were both green",
    "my friend put the %s on top of the %s",
    "there was no water for the %s and no light for the %s",
    "the young %s was waiting next to the %s",
    "nobody liked the dark %s and the broken %s",
    "we found the %s on the road to the %s",
    "a good %s came down to help the old %s",
)


_FIRST_WORDS = f"{ADJECTIVES} {THINGS}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is to be found: the `kind` of `name`."""

    kind: str
    name: str
    value: str

    def written(self, template: str) -> str:
        text = template.format(kind=self.kind, name=self.name, value=self.value)
        return text[0].upper() + text[1:]


def draw(rng: Random, split: Split) -> Sample:
    """Mostly a text, sometimes a list; length and depth are uniform."""
    depth = rng.random()
    if rng.random() < LIST_SHARE:
        return draw_list(rng, split, tokens=rng.randint(SHORTEST_TOKENS, LONGEST_LIST_TOKENS), depth=depth)
    return draw_at(rng, split, tokens=rng.randint(SHORTEST_TOKENS, LONGEST_TOKENS), depth=depth)


def draw_at(
    rng: Random, split: Split, *, tokens: int, depth: float, chars_per_token: float = CHARS_PER_TOKEN
) -> Sample:
    """A fact in a text of about `tokens`, after the share `depth` of it (0 is the start, 1 the end)."""
    _check(tokens, depth)
    asked, *others = _entries(rng, split, 1 + rng.randint(0, min(MOST_OTHERS, tokens // TOKENS_PER_OTHER)))
    question = asked.written(say(rng, QUESTIONS, split))
    facts = [entry.written(say(rng, FACTS, split)) for entry in (asked, *others)]
    room = round(tokens * chars_per_token) - len(question) - sum(len(fact) + 1 for fact in facts)
    sentences = _filler(rng, split, room)
    for fact in facts[1:]:
        sentences.insert(rng.randint(0, len(sentences)), fact)
    sentences.insert(_index_at(sentences, depth), facts[0])
    return _sample(asked, f"{' '.join(sentences)}\n\n{question}", tokens=tokens, depth=depth, form="text")


def draw_list(rng: Random, split: Split, *, tokens: int, depth: float) -> Sample:
    """As `draw_at`, in a list with one "name: value" per line."""
    _check(tokens, depth)
    count = max(2, round((tokens - TOKENS_OF_QUESTION) / TOKENS_PER_ENTRY))
    place = min(int(depth * count), count - 1)
    values = {name: str(words.number(rng, split, 100, 99_999)) for name in _names(rng, split, count)}
    asked = Entry(kind="value", name=list(values)[place], value=list(values.values())[place])
    question = asked.written(say(rng, QUESTIONS, split))
    head = words.pick(rng, LIST_HEADS, split, held_out=HELD_OUT_HEADS)
    lines = "\n".join(f"{name}: {value}" for name, value in values.items())
    return _sample(asked, f"{head}\n{lines}\n\n{question}", tokens=tokens, depth=depth, form="list")


def is_right(sample: Sample, text: str) -> bool:
    """Whether the last word of `text` is the value."""
    said = text.split()
    return bool(said) and said[-1].removesuffix(".") == sample.expected["value"]


def _check(tokens: int, depth: float) -> None:
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}: must be 1 or more")
    if not 0 <= depth <= 1:
        raise ValueError(f"depth is {depth}: must be between 0 (the start) and 1 (the end)")


def _sample(asked: Entry, content: str, *, tokens: int, depth: float, form: str) -> Sample:
    return Sample(
        task="needle",
        messages=({"role": "user", "content": content},),
        answer={"role": "assistant", "content": asked.written(ANSWER)},
        facts={"tokens": tokens, "depth": round(depth, 2), "form": form},
        expected={"value": asked.value, "name": asked.name},
    )


def _names(rng: Random, split: Split, count: int) -> list[str]:
    return [word.capitalize() for word in words.distinct_words(rng, split, count)]


def _entries(rng: Random, split: Split, count: int) -> list[Entry]:
    """Of different names; every other one, more or less, is of the first one's kind."""
    is_word = rng.random() < WORD_VALUE_SHARE
    kind = _kind(rng, split)
    return [
        Entry(
            kind=kind if index == 0 or rng.random() < 0.5 else _kind(rng, split),
            name=name,
            value=words.word(rng, split) if is_word else str(words.number(rng, split, 1_000, 999_999)),
        )
        for index, name in enumerate(_names(rng, split, count))
    ]


def _kind(rng: Random, split: Split) -> str:
    is_made_up = rng.random() < MADE_UP_SHARE
    noun = words.word(rng, split) if is_made_up else words.english(rng, NOUNS, split)
    if rng.random() >= TWO_WORDS_SHARE:
        return noun
    is_made_up = rng.random() < MADE_UP_SHARE
    return f"{words.word(rng, split) if is_made_up else words.english(rng, _FIRST_WORDS, split)} {noun}"


def _filler(rng: Random, split: Split, num_chars: int) -> list[str]:
    """Sentences of `num_chars` in all, short of it by less than a sentence; one at least."""
    vocabulary = [words.word(rng, split, syllables=(1, 2)) for _ in range(VOCABULARY)]
    openings = _of_split(OPENINGS, split, held_out=HELD_OUT_OPENINGS)
    clauses = _of_split(CLAUSES, split, held_out=HELD_OUT_CLAUSES)
    sentences: list[str] = []
    while True:
        clause = rng.choice(clauses) % (rng.choice(vocabulary), rng.choice(vocabulary))
        sentence = f"{rng.choice(openings)} {clause}."
        num_chars -= len(sentence) + 1
        if sentences and num_chars < 0:
            return sentences
        sentences.append(sentence)


def _of_split(options: tuple[str, ...], split: Split, *, held_out: int) -> tuple[str, ...]:
    return options[-held_out:] if split == "held_out" else options[:-held_out]


def _index_at(sentences: Sequence[str], depth: float) -> int:
    """The place nearest to that share of the characters."""
    wanted = depth * sum(map(len, sentences))
    for index, sentence in enumerate(sentences):
        if wanted < len(sentence) / 2:
            return index
        wanted -= len(sentence)
    return len(sentences)


TASK = Task(name="needle", draw=draw, is_right=is_right)
