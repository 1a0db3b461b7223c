"""The JSON of OpenAI's Responses API.

Deltas become its events or the whole response. Knows nothing of how the deltas came about and nothing of the
wire (ingress/stream.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ingress.answer import Heading, Json, Usage
from ingress.dsml import ToolCall
from ingress.errors import RequestError, error_fields
from ingress.output import Delta

PARTS = {"message": "output_text", "reasoning": "reasoning_text"}  # item -> its one part
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}


class ResponsesAnswer:
    """POST /v1/responses. One choice; each run of text, of reasoning and each call is an output item.

    told: what the response repeats of its request.
    """

    end = ""

    def __init__(self, heading: Heading, told: Json) -> None:
        self._heading = heading
        self._told = told
        self._num_events = 0
        self._items: list[Json] = []  # those that are done
        self._open: Json | None = None  # the one that is being told
        self._finish: str | None = None

    def opening(self) -> list[Json]:
        response = self._response("in_progress", [], None)
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=response) for kind in kinds]

    def chunks(self, delta: Delta) -> list[Json]:
        events = [*self._more("reasoning", delta.reasoning), *self._more("message", delta.content)]
        for call in delta.calls:
            events += [*self._end_item(), *self._call(call)]
        if delta.finish is not None:
            self._finish = delta.finish
            events += self._end_item()
        return events

    def closing(self, usage: Usage) -> list[Json]:
        response = self._response(_status(self._finish), self._items, usage)
        return [self._event(f"response.{response['status']}", response=response)]

    def whole(self, deltas: Sequence[Delta], usage: Usage) -> Json:
        [delta] = deltas
        texts = (("reasoning", delta.reasoning), ("message", delta.content))
        items = [_text_item(kind, text) for kind, text in texts if text]
        return self._response(
            _status(delta.finish), items + [_call_item(call) for call in delta.calls], usage
        )

    def name(self, chunk: Json) -> str | None:
        return str(chunk["type"])

    def failure(self, error: RequestError) -> Json:
        told = error_fields(error)["error"]
        return self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _response(self, status: str, items: list[Json], usage: Usage | None) -> Json:
        return {
            "id": self._heading.answer_id,
            "object": "response",
            "created_at": self._heading.created,
            "model": self._heading.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": items,
            "usage": None if usage is None else _usage(usage),
            **self._told,
        }

    def _more(self, kind: str, text: str) -> list[Json]:
        """More text of an item of `kind`, which begins if it is not the one under way."""
        if not text:
            return []
        events = [] if self._open is not None and self._open["type"] == kind else self._begin(kind)
        assert self._open is not None, "just begun"
        self._open["content"][0]["text"] += text
        return [*events, self._text_event("delta", delta=text)]

    def _begin(self, kind: str) -> list[Json]:
        ended = self._end_item()
        self._open = _text_item(kind, "")
        part = dict(self._open["content"][0])
        item = {**self._open, "status": "in_progress", "content": []}
        return [
            *ended,
            self._event("response.output_item.added", output_index=len(self._items), item=item),
            self._part_event("added", part),
        ]

    def _end_item(self) -> list[Json]:
        if self._open is None:
            return []
        part = self._open["content"][0]
        events = [self._text_event("done", text=part["text"]), self._part_event("done", part)]
        return [*events, self._done(self._open)]

    def _call(self, call: ToolCall) -> list[Json]:
        item = _call_item(call)
        place = {"item_id": item["id"], "output_index": len(self._items)}
        begun = {**item, "status": "in_progress", "arguments": ""}
        arguments = "response.function_call_arguments"
        return [
            self._event("response.output_item.added", output_index=len(self._items), item=begun),
            self._event(f"{arguments}.delta", **place, delta=call.arguments),
            self._event(f"{arguments}.done", **place, name=call.name, arguments=call.arguments),
            self._done(item),
        ]

    def _done(self, item: Json) -> Json:
        event = self._event("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._open = None
        return event

    def _text_event(self, what: str, **fields: str) -> Json:
        assert self._open is not None, "only an open item has text"
        part = PARTS[self._open["type"]]
        logprobs: Json = {"logprobs": []} if part == "output_text" else {}
        return self._event(f"response.{part}.{what}", **self._place(), **fields, **logprobs)

    def _part_event(self, what: str, part: Json) -> Json:
        return self._event(f"response.content_part.{what}", **self._place(), part=part)

    def _place(self) -> Json:
        assert self._open is not None, "only an open item has parts"
        return {"item_id": self._open["id"], "output_index": len(self._items), "content_index": 0}

    def _event(self, kind: str, **fields: object) -> Json:
        self._num_events += 1
        return {"type": kind, "sequence_number": self._num_events - 1, **fields}


def _text_item(kind: str, text: str) -> Json:
    part: Json = {"type": PARTS[kind], "text": text}
    item: Json = {"type": kind, "id": _item_id(kind), "status": "completed", "content": [part]}
    if kind == "reasoning":
        return {**item, "summary": []}
    part |= {"annotations": [], "logprobs": []}
    return {**item, "role": "assistant"}


def _call_item(call: ToolCall) -> Json:
    return {
        "type": "function_call",
        "id": _item_id("function_call"),
        "call_id": f"call_{secrets.token_hex(12)}",
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _item_id(kind: str) -> str:
    return f"{PREFIXES[kind]}_{secrets.token_hex(12)}"


def _status(finish: str | None) -> str:
    return "incomplete" if finish == "length" else "completed"


def _usage(usage: Usage) -> Json:
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached},
        "output_tokens": usage.num_completion,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning},
        "total_tokens": usage.num_prompt + usage.num_completion,
    }
