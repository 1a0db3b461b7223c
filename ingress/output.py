"""Token events of one choice to what a client reads.

Text, reasoning and stop strings: the same events give the same text, however they are cut, streamed or not.
Knows nothing of JSON shapes (ingress/completion.py) and nothing of sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.messages import FINISH_DEADLINE, FINISH_LENGTH, FINISH_STOP, TokenEvent
from ingress.stops import StopFinder
from ingress.tokens import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What one event adds to choice `index`.

    token_ids: the tokens that count, with `logprobs` and `top` beside them when asked for. num_reasoning:
    how many of them belong to the reasoning. num_cached: on one delta of the choice, how many tokens of its
    prompt were not computed for it. finish: "stop" or "length" on the last delta of the choice. is_late: the
    length is that which the deadline left.
    """

    index: int
    content: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    num_reasoning: int = 0
    num_cached: int | None = None
    finish: str | None = None
    is_late: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """stops: strings that end the text and are not shown, looked for from token `min_tokens` on.

    silent_stop_ids: tokens that end the sequence and are not shown. starts_in_reasoning: the prompt left
    <think> open.
    """

    stops: tuple[str, ...] = ()
    min_tokens: int = 0
    silent_stop_ids: frozenset[int] = frozenset()
    starts_in_reasoning: bool = False


class Output:
    """The text of one choice, as it grows."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: OutputOptions) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._options = options
        self._end_think = tokenizer.special_id("</think>")
        self._in_reasoning = options.starts_in_reasoning and self._end_think is not None
        self._section = _Section(tokenizer, options.stops)
        self._num_tokens = 0

    def push(self, event: TokenEvent) -> Delta:
        """What `event` adds. A delta with `finish` ends the choice, whatever the engine still sends."""
        added = _Added()
        for position, token_id in enumerate(event.token_ids):
            self._num_tokens += 1
            added.num_reasoning += self._in_reasoning
            is_last = event.finish is not None and position == len(event.token_ids) - 1
            if self._push_token(token_id, added, is_last=is_last, finish=event.finish):
                return self._delta(event, added, num_tokens=position + 1, finish=FINISH_STOP)
        stopped = event.finish is not None and self._close_section(added)
        finish = FINISH_STOP if stopped else event.finish
        return self._delta(event, added, num_tokens=len(event.token_ids), finish=finish)

    def _push_token(self, token_id: int, added: _Added, *, is_last: bool, finish: str | None) -> bool:
        """Whether a stop string was found."""
        if self._in_reasoning and token_id == self._end_think:
            stopped = self._close_section(added)
            self._in_reasoning = False
            return stopped
        if is_last and finish == FINISH_STOP and token_id in self._options.silent_stop_ids:
            return False
        is_searched = self._num_tokens >= self._options.min_tokens
        text, stopped = self._section.push(token_id, is_searched=is_searched)
        added.append(text, self._in_reasoning)
        return stopped

    def _close_section(self, added: _Added) -> bool:
        text, stopped = self._section.close()
        added.append(text, self._in_reasoning)
        self._section = _Section(self._tokenizer, self._options.stops)
        return stopped

    def _delta(self, event: TokenEvent, added: _Added, *, num_tokens: int, finish: str | None) -> Delta:
        is_late = finish == FINISH_DEADLINE
        return Delta(
            index=self._index,
            content=added.content,
            reasoning=added.reasoning,
            token_ids=event.token_ids[:num_tokens],
            logprobs=event.logprobs[:num_tokens],
            top=event.top[:num_tokens],
            num_reasoning=added.num_reasoning,
            num_cached=event.num_cached,
            finish=FINISH_LENGTH if is_late else finish,
            is_late=is_late,
        )


class _Added:
    """The text of one event while it is put together."""

    def __init__(self) -> None:
        self.content = ""
        self.reasoning = ""
        self.num_reasoning = 0

    def append(self, text: str, in_reasoning: bool) -> None:
        if in_reasoning:
            self.reasoning += text
        else:
            self.content += text


class _Section:
    """Reasoning or content: bytes and stop strings do not reach across."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._text = tokenizer.detokenizer()
        self._finder = StopFinder(stops)

    def push(self, token_id: int, *, is_searched: bool) -> tuple[str, bool]:
        text = self._text.push([token_id])
        return self._finder.push(text) if is_searched else (text, False)

    def close(self) -> tuple[str, bool]:
        text, stopped = self._finder.push(self._text.flush())
        return (text, True) if stopped else (text + self._finder.flush(), False)
