"""Token events of one choice to what a client reads.

Text, reasoning, tool calls and stop strings: the same events give the same, however they are cut, streamed or
not. Knows nothing of JSON shapes (ingress/chat_answer.py) and nothing of sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from actors.messages import FINISH_DEADLINE, FINISH_LENGTH, FINISH_STOP, TokenEvent
from ingress.dsml import MARK, CallParser, Schemas, ToolCall
from ingress.specials import DSML, END_THINK
from ingress.stops import StopFinder
from ingress.tokens import Tokenizer

FINISH_CALLS = "tool_calls"  # a `stop` after at least one call


Top = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Of the prompt's tokens but its first."""

    logprobs: tuple[float, ...]
    top: tuple[Top, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delta:
    """What one event adds to choice `index`.

    calls: those whose last tag it closed. token_ids: the tokens that count, with `logprobs` and `top` beside
    them when asked for. prompt: on the first such delta of the choice, when asked for. num_reasoning: how
    many of them belong to the reasoning. num_cached: on one delta of the choice, how many tokens of its
    prompt were not computed for it. finish: "stop", "length" or "tool_calls" on the last delta of the choice.
    is_late: the length is that which the deadline left. stop_string: the one that ended it.
    """

    index: int
    content: str = ""
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[Top, ...] = ()
    prompt: PromptLogprobs | None = None
    num_reasoning: int = 0
    num_cached: int | None = None
    finish: str | None = None
    is_late: bool = False
    stop_string: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """stops: strings that end the text and are not shown, looked for from token `min_tokens` on.

    silent_stop_ids: tokens that end the sequence and are not shown. starts_in_reasoning: the prompt left
    <think> open. schemas: of the tools that may be called, None where there are none: then nothing is a
    call. is_one_call: the first call ends the choice. scores_prompt: with its first token come the logprobs
    of the prompt. shows_nothing: those are all that is wanted.
    """

    stops: tuple[str, ...] = ()
    min_tokens: int = 0
    silent_stop_ids: frozenset[int] = frozenset()
    starts_in_reasoning: bool = False
    schemas: Schemas | None = None
    is_one_call: bool = False
    scores_prompt: bool = False
    shows_nothing: bool = False


class Output:
    """The text and the calls of one choice, as they grow."""

    def __init__(self, index: int, tokenizer: Tokenizer, options: OutputOptions) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._options = options
        self._end_think = tokenizer.special_id(END_THINK.text)
        self._in_reasoning = options.starts_in_reasoning and self._end_think is not None
        self._section = self._new_section()
        self._num_tokens = 0
        self._wants_scores = options.scores_prompt
        self._has_called = False

    def push(self, event: TokenEvent) -> Delta:
        """What `event` adds. A delta with `finish` ends the choice, whatever the engine still sends."""
        if self._options.shows_nothing and event.token_ids:
            return self._delta(event, _Added(), num_tokens=0, finish=FINISH_LENGTH)
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
        """Whether the choice ends here: at a stop string, or at the one call that is wanted."""
        if self._in_reasoning and token_id == self._end_think:
            if self._close_section(added):
                return True
            self._in_reasoning = False
            self._section = self._new_section()
            return False
        if is_last and finish == FINISH_STOP and token_id in self._options.silent_stop_ids:
            return False
        is_searched = self._num_tokens >= self._options.min_tokens
        return self._add(self._section.push(token_id, is_searched=is_searched), added)

    def _close_section(self, added: _Added) -> bool:
        return self._add(self._section.close(), added)

    def _add(self, piece: _Piece, added: _Added) -> bool:
        added.append(piece.text, self._in_reasoning)
        if not piece.calls:
            return piece.is_stopped
        self._has_called = True
        if not self._options.is_one_call:
            added.calls += piece.calls
            return piece.is_stopped
        added.calls.append(piece.calls[0])
        added.append("" if piece.is_stopped else self._section.held(), self._in_reasoning)
        return True

    def _new_section(self) -> _Section:
        return _Section(self._tokenizer, self._options, has_calls=not self._in_reasoning)

    def _delta(self, event: TokenEvent, added: _Added, *, num_tokens: int, finish: str | None) -> Delta:
        is_late = finish == FINISH_DEADLINE
        if finish == FINISH_STOP and self._has_called:
            finish = FINISH_CALLS
        return Delta(
            index=self._index,
            content=added.content,
            reasoning=added.reasoning,
            calls=tuple(added.calls),
            token_ids=event.token_ids[:num_tokens],
            logprobs=event.logprobs[:num_tokens],
            top=event.top[:num_tokens],
            prompt=self._scores(event),
            num_reasoning=added.num_reasoning,
            num_cached=event.num_cached,
            finish=FINISH_LENGTH if is_late else finish,
            is_late=is_late,
            stop_string=self._section.stop_string,
        )

    def _scores(self, event: TokenEvent) -> PromptLogprobs | None:
        if not (self._wants_scores and event.token_ids):
            return None
        self._wants_scores = False
        return PromptLogprobs(event.prompt_logprobs, event.prompt_top)


@dataclass(slots=True)
class _Added:
    """What one event adds, while it is put together."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    num_reasoning: int = 0

    def append(self, text: str, in_reasoning: bool) -> None:
        if in_reasoning:
            self.reasoning += text
        else:
            self.content += text


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a token shows. is_stopped: its text ended in a stop string, which is not in it."""

    text: str
    calls: Sequence[ToolCall]
    is_stopped: bool


class _Section:
    """Reasoning or content: bytes, calls and stop strings do not reach across.

    Stop strings are looked for in the text that is shown, not in a call.
    """

    def __init__(self, tokenizer: Tokenizer, options: OutputOptions, *, has_calls: bool) -> None:
        self._text = tokenizer.detokenizer()
        self._finder = StopFinder(options.stops)
        schemas = options.schemas if has_calls else None
        self._parser = None if schemas is None else CallParser(schemas)
        self._mark_id = tokenizer.special_id(DSML.text)

    @property
    def stop_string(self) -> str | None:
        """The one that was found."""
        return self._finder.found

    def push(self, token_id: int, *, is_searched: bool) -> _Piece:
        if self._parser is None:
            return self._shown(self._text.push([token_id]), [], is_searched=is_searched)
        is_mark = token_id == self._mark_id
        text = self._text.flush() + MARK if is_mark else self._text.push([token_id])
        return self._parsed(self._parser.push(text), is_searched=is_searched)

    def close(self) -> _Piece:
        text = self._text.flush()
        if self._parser is None:
            last = self._shown(text, [], is_searched=True)
        else:
            last = self._parsed(self._parser.push(text) + self._parser.close(), is_searched=True)
        return last if last.is_stopped else _Piece(last.text + self.held(), last.calls, False)

    def held(self) -> str:
        """What may have begun a stop string, where no more text will come."""
        return self._finder.flush()

    def _parsed(self, found: Sequence[str | ToolCall], *, is_searched: bool) -> _Piece:
        text = "".join(one for one in found if isinstance(one, str))
        calls = [one for one in found if isinstance(one, ToolCall)]
        return self._shown(text, calls, is_searched=is_searched)

    def _shown(self, text: str, calls: Sequence[ToolCall], *, is_searched: bool) -> _Piece:
        shown, is_stopped = self._finder.push(text) if is_searched else (text, False)
        return _Piece(shown, calls, is_stopped)
