"""Chat requests to a served model, answered in full.

Any OpenAI endpoint will do; what only Shoal tells (the ids of the tokens) is used where it comes. Knows
nothing of tasks and of what is right.

Whether the text of a tool call shows its special tokens depends on the server and on the tokenizer's flags.
So a reply to a request with tools is put together again: from parsed `tool_calls`, else from the token ids,
else it is the content as it came.

Errors: EndpointError.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from demo.sample import Message
from ingress.encoding import encode_history, render
from ingress.specials import END_THINK, EOS
from ingress.values import PromptError

PATIENCE_S = 600.0  # sixteen long prompts may stand in line before one


class EndpointError(RuntimeError):
    """The endpoint is not there or did not answer as the API says; the text holds what came instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One assistant message. text: after the reasoning, a tool call in DSML, without the end of sentence."""

    text: str
    reasoning: str
    prompt_tokens: int
    tokens: int
    finish_reason: str


class Client:
    """One endpoint and the one model that it serves."""

    def __init__(self, http: httpx.AsyncClient, model: str) -> None:
        self._http = http
        self.model = model

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool = False,
        max_tokens: int,
    ) -> Reply:
        """The greedy answer; raises EndpointError."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0,
            "chat_template_kwargs": {"thinking": thinking},
        }
        if tools:
            body |= {"tools": list(tools), "return_token_ids": True}
        answer = await self._post("/v1/chat/completions", body)
        with _as_promised():
            choice, usage = answer["choices"][0], answer["usage"]
            return Reply(
                text=await self._text(choice, with_tools=bool(tools), thinking=thinking),
                reasoning=choice["message"].get("reasoning_content") or "",
                prompt_tokens=usage["prompt_tokens"],
                tokens=usage["completion_tokens"],
                finish_reason=choice["finish_reason"],
            )

    async def _text(self, choice: Mapping[str, Any], *, with_tools: bool, thinking: bool) -> str:
        message = choice["message"]
        content: str = message["content"] or ""
        if message.get("tool_calls"):
            return calls_as_text(content, message["tool_calls"])
        if not with_tools or "token_ids" not in choice:
            return content
        body = {"model": self.model, "tokens": choice["token_ids"]}
        whole: str = (await self._post("/detokenize", body))["prompt"]
        answered = whole.partition(END_THINK.text)[2] if thinking else whole
        return answered.removesuffix(EOS.text)

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        with _as_promised():
            response = await self._http.post(path, json=body)
            if response.status_code != httpx.codes.OK:
                raise EndpointError(f"{path}: HTTP {response.status_code}: {response.text[:300]}")
            answer: dict[str, Any] = response.json()
        return answer


@asynccontextmanager
async def connected(url: str, *, concurrency: int) -> AsyncIterator[Client]:
    """A client of the first model that `url` lists; raises EndpointError where none is ready."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    verify = url.startswith("https:")  # else no certificates are needed, and to load them takes 0.1 s
    async with httpx.AsyncClient(
        base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False, verify=verify
    ) as http:
        with _as_promised():
            response = (await http.get("/v1/models")).raise_for_status()
            model: str = response.json()["data"][0]["id"]
        yield Client(http, model)


def calls_as_text(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """The content and the DSML of the parsed `calls` of a reply; without those where they are damaged."""
    turn = {"role": "assistant", "content": content, "tool_calls": list(calls)}
    try:
        text = render(encode_history([{"role": "user", "content": ""}, turn]))
    except PromptError:
        return content
    return text.partition(END_THINK.text)[2].removesuffix(EOS.text)


@contextmanager
def _as_promised() -> Iterator[None]:
    """Failures of the connection, and answers of another shape than the API's, as EndpointError."""
    try:
        yield
    except httpx.HTTPError as error:
        raise EndpointError(f"{type(error).__name__}: {error}: is a server ready at that address?") from error
    except (json.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError(f"not an answer of the OpenAI API: {type(error).__name__} {error}") from error
