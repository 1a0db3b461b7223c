"""Sums, differences and products, with and without steps.

The steps are schoolbook columns: units first, one fact of one-digit numbers and a carry per line. Knows
nothing of how a model is trained to follow them.

One line per column, `x+y+carry=TU>done`: T is the next carry, U the digit found, `done` all digits found so
far. `-` borrows as `+` carries; a borrow left at the end (`<0`) swaps the numbers and the result is negative.
`*` takes one digit of the second factor at a time and adds the partial products. `=` closes a block.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from demo import words
from demo.arithmetic_words import BARE, SPOKEN, WORDED
from demo.lexicon import THINGS
from demo.phrases import say
from demo.sample import Sample, Split, Task

MOST_DIGITS = 6
WORDED_SHARE = 0.35
# As often as they stand here.
OPERATIONS = ("add", "add", "sub", "sub", "mul", "mul", "mul", "sum", "chain", "chain")
LONG_FACTOR_SHARE = 0.6  # of the products have a second factor of two digits
MADE_UP_SHARE = 0.5  # of the things counted

SPOKEN_SHARE = 0.2
NUMBER = re.compile(r"(?:(?<![0-9])-)?[0-9]+(?:\.[0-9]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Expression:
    """numbers[0] operators[0] numbers[1] ...; `*` binds before `+` and `-`."""

    numbers: tuple[int, ...]
    operators: str

    def __str__(self) -> str:
        return self.joined("")

    @property
    def value(self) -> int:
        expression = self
        while expression.operators:
            expression = expression.reduced(expression.next_place)
        return expression.numbers[0]

    @property
    def next_place(self) -> int:
        """The operator to apply first."""
        return max(self.operators.find("*"), 0)

    def joined(self, space: str) -> str:
        """As text, with `space` on both sides of each operator."""
        rest = zip(self.operators, self.numbers[1:], strict=True)
        return str(self.numbers[0]) + "".join(
            f"{space}{operator}{space}{number}" for operator, number in rest
        )

    def reduced(self, place: int) -> Expression:
        """With that operator applied."""
        a, b = self.numbers[place : place + 2]
        result = {"+": a + b, "-": a - b, "*": a * b}[self.operators[place]]
        numbers = (*self.numbers[:place], result, *self.numbers[place + 2 :])
        return Expression(numbers=numbers, operators=self.operators[:place] + self.operators[place + 1 :])


def draw(rng: Random, split: Split) -> Sample:
    """Half of them with thinking; the questions of both halves are drawn alike."""
    return draw_form(rng, split, thinking=rng.random() < 0.5)


def draw_form(rng: Random, split: Split, *, thinking: bool) -> Sample:
    """The same state of the generator gives the same question with thinking and without."""
    operation = rng.choice(OPERATIONS)
    expression = _expression(rng, split, operation)
    is_worded = expression.operators in WORDED and expression.value >= 0 and rng.random() < WORDED_SHARE
    question = _worded(rng, split, expression) if is_worded else _bare(rng, split, expression)
    answer = {"role": "assistant", "content": str(expression.value)}
    if thinking:
        answer["reasoning_content"] = reasoning(expression)
    return Sample(
        task="arithmetic",
        messages=({"role": "user", "content": question},),
        answer=answer,
        thinking=thinking,
        facts={
            "thinking": int(thinking),
            "operation": operation,
            "digits": max(len(str(number)) for number in expression.numbers),
            "worded": int(is_worded),
        },
        expected={"value": expression.value, "expression": str(expression)},
    )


def is_right(sample: Sample, text: str) -> bool:
    """Whether the last number of `text` is the result, written plainly."""
    found = NUMBER.findall(text)
    return bool(found) and found[-1] == str(sample.expected["value"])


def reasoning(expression: Expression) -> str:
    """The steps from `expression` to its value, one operator after the other."""
    lines: list[str] = []
    while expression.operators:
        place = expression.next_place
        if len(expression.operators) > 1:
            lines.append(str(expression))
        a, b = expression.numbers[place : place + 2]
        lines += _BLOCKS[expression.operators[place]](a, b)
        expression = expression.reduced(place)
    return "\n".join(lines)


def _addition(a: int, b: int) -> list[str]:
    lines, carry, done = [f"{a}+{b}"], 0, ""
    for x, y in _columns(a, b):
        total = x + y + carry
        done = f"{total % 10}{done}"
        lines.append(f"{x}+{y}+{carry}={total:02}>{done}")
        carry = total // 10
    return [*lines, f"={a + b}"]


def _subtraction(a: int, b: int) -> list[str]:
    lines, borrow, done = [f"{a}-{b}"], 0, ""
    for x, y in _columns(a, b):
        left = x - y - borrow
        done = f"{left % 10}{done}"
        lines.append(f"{x}-{y}-{borrow}={int(left < 0)}{left % 10}>{done}")
        borrow = int(left < 0)
    if borrow:
        return [*lines, "<0", *_subtraction(b, a), f"={a - b}"]
    return [*lines, f"={a - b}"]


def _multiplication(a: int, b: int) -> list[str]:
    """b has one digit or two."""
    if b < 10:
        return _partial_product(a, b, zeros="")
    tens, units = divmod(b, 10)
    lines = [f"{a}*{b}", *_partial_product(a, units, zeros=""), *_partial_product(a, tens, zeros="0")]
    return [*lines, *_addition(a * units, a * tens * 10)]


def _partial_product(a: int, digit: int, *, zeros: str) -> list[str]:
    """a times one digit that `zeros` follow; they are the first digits found."""
    lines, carry, done = [f"{a}*{digit}{zeros}"], 0, zeros
    for x in _digits(a):
        total = x * digit + carry
        done = f"{total % 10}{done}"
        lines.append(f"{x}*{digit}+{carry}={total:02}>{done}")
        carry = total // 10
    return [*lines, f"={a * int(f'{digit}{zeros}')}"]


_BLOCKS: dict[str, Callable[[int, int], list[str]]] = {
    "+": _addition,
    "-": _subtraction,
    "*": _multiplication,
}


def _digits(number: int, width: int = 1) -> list[int]:
    """Units first, filled with zeros up to `width`."""
    return [int(digit) for digit in reversed(f"{number:0{width}}")]


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digits of both that stand above each other, units first."""
    width = len(str(max(a, b)))
    return list(zip(_digits(a, width), _digits(b, width), strict=True))


def _expression(rng: Random, split: Split, operation: str) -> Expression:
    """One whose text belongs to the split and of which only the whole may be negative."""
    while True:
        expression = _DRAWS[operation](rng)
        if words.split_of(str(expression)) == split:
            return expression


def _of_digits(rng: Random, low: int, high: int) -> int:
    """A number with `low` to `high` digits, each count as likely."""
    digits = rng.randint(low, high)
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def _two_numbers(rng: Random) -> tuple[int, int]:
    """One of any length and one not longer, in either order."""
    long = _of_digits(rng, 1, MOST_DIGITS)
    short = _of_digits(rng, 1, len(str(long)))
    return (long, short) if rng.random() < 0.5 else (short, long)


def _sum_of_two(rng: Random) -> Expression:
    return Expression(numbers=_two_numbers(rng), operators="+")


def _difference(rng: Random) -> Expression:
    """A quarter of them negative."""
    a, b = _two_numbers(rng)
    is_swapped = a < b and rng.random() < 0.5
    return Expression(numbers=(b, a) if is_swapped else (a, b), operators="-")


def _product(rng: Random) -> Expression:
    digits = 2 if rng.random() < LONG_FACTOR_SHARE else 1
    return Expression(numbers=(_of_digits(rng, 1, 3), _of_digits(rng, digits, digits)), operators="*")


def _sum_of_many(rng: Random) -> Expression:
    count = rng.randint(3, 4)
    numbers = tuple(_of_digits(rng, 1, 3) for _ in range(count))
    return Expression(numbers=numbers, operators="+" * (count - 1))


def _chain(rng: Random) -> Expression:
    """A product beside a sum or a difference, or a difference after a sum."""
    operators = rng.choice(("+*", "-*", "*+", "+-"))
    small, factor = _of_digits(rng, 1, 2), rng.randint(2, 9)
    other = _of_digits(rng, 1, 3)
    if operators == "*+":
        return Expression(numbers=(small, factor, other), operators=operators)
    last = factor if "*" in operators else _of_digits(rng, 1, 3)
    return Expression(numbers=(other, small, last), operators=operators)


_DRAWS: dict[str, Callable[[Random], Expression]] = {
    "add": _sum_of_two,
    "sub": _difference,
    "mul": _product,
    "sum": _sum_of_many,
    "chain": _chain,
}


def _bare(rng: Random, split: Split, expression: Expression) -> str:
    text = expression.joined(" ")
    if rng.random() < SPOKEN_SHARE:
        for operator, spoken in SPOKEN.items():
            text = text.replace(f" {operator} ", f" {rng.choice(spoken)} ")
    return say(rng, BARE, split).format(e=text)


def _worded(rng: Random, split: Split, expression: Expression) -> str:
    is_made_up = rng.random() < MADE_UP_SHARE
    thing = words.word(rng, split) if is_made_up else words.english(rng, THINGS, split)
    return say(rng, WORDED[expression.operators], split).format(
        name=words.name(rng, split),
        other=words.name(rng, split),
        things=f"{thing}s" if thing[-1] not in "fhsxyz" else thing,
        **dict(zip("abc", expression.numbers, strict=False)),
    )


TASK = Task(name="arithmetic", draw=draw, is_right=is_right)
