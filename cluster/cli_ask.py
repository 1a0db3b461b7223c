"""`shoal chat` and `shoal complete`: to talk to what is served.

On a terminal: streamed, reasoning dimmed, many lines, a history. Elsewhere plain text or JSON. Knows nothing
of the API (cluster/api_client.py) and of what a reply is made of (cluster/conversation.py).
"""

from __future__ import annotations

import contextlib
import json
import readline
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cluster.cli_console import AsJson, console, fail, tell
from cluster.conversation import Conversation, Piece, Reply
from cluster.places import api_place
from cluster.spec import cache_directory

if TYPE_CHECKING:  # httpx is imported by the first question: other commands need not wait for it
    from cluster.api_client import Api

EXIT_CUT = 130  # as shells have it for Ctrl-C
STYLES = {"reasoning": "dim italic", "content": "", "call": "cyan"}
MANY_LINES = '"""'
HELP = f"/new begins anew, /quit or Ctrl-D leaves; end a line with \\ or use {MANY_LINES} for more than one"

Url = Annotated[str | None, typer.Option(help="Of the server; default: the one that runs here.")]
Key = Annotated[str | None, typer.Option(envvar="SHOAL_API_KEY", help="API key.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="The most tokens to make.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="The same seed, the same answer.")]


def chat(
    prompt: Annotated[str | None, typer.Argument(help="Ask this and end; - reads stdin.")] = None,
    url: Url = None,
    key: Key = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file with OpenAI's `tools`.")] = None,
    thinking: Annotated[bool, typer.Option("--thinking", help="Let the model reason first.")] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Talk to the served model."""
    options = _options(max_tokens, temperature, seed)
    if thinking:
        options["thinking"] = {"type": "enabled"}
    if tools is not None:
        options["tools"] = _tools(tools)
    conversation = Conversation.begun(system)
    is_talk = prompt is None and sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    with _api(url, key) as api:
        options["model"] = api.model()
        if is_talk:
            _talk(api, conversation, options)
            return
        conversation.ask(sys.stdin.read() if prompt in (None, "-") else str(prompt))
        reply = _reply(api, conversation, options, Console(), is_shown=not as_json)
        if as_json:
            tell(reply.told())


def complete(
    prompt: Annotated[str | None, typer.Argument(help="The text to go on with; default: stdin.")] = None,
    url: Url = None,
    key: Key = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Let the served model go on with a text."""
    options = _options(max_tokens, temperature, seed)
    text, finish = "", None
    with _api(url, key) as api:
        body = {"model": api.model(), "prompt": sys.stdin.read() if prompt is None else prompt, **options}
        for chunk in api.chunks("/v1/completions", body):
            for choice in chunk["choices"]:
                text, finish = text + choice["text"], choice["finish_reason"] or finish
                if not as_json:
                    sys.stdout.write(choice["text"])
                    sys.stdout.flush()
    if as_json:
        tell({"text": text, "finish_reason": finish})
    else:
        sys.stdout.write("\n")


def _talk(api: Api, conversation: Conversation, options: dict[str, Any]) -> None:
    from cluster.api_client import ApiError

    screen = Console(highlight=False)
    screen.print(f"[bold]{options['model']}[/]  [dim]{HELP}[/]")
    with _history():
        while (text := _question()) not in (None, "/quit"):
            if text == "/new":
                conversation.messages = [one for one in conversation.messages[:1] if one["role"] == "system"]
                continue
            if not text:
                continue
            conversation.ask(text)
            try:
                reply = _reply(api, conversation, options, screen, is_shown=True)
            except ApiError as error:
                screen.print(f"[bold red]error[/] {error}", soft_wrap=True)
                conversation.unask()
            except KeyboardInterrupt:
                screen.print("[dim]cut[/]")
                conversation.unask()
            else:
                conversation.answered(reply)


def _reply(
    api: Api, conversation: Conversation, options: dict[str, Any], screen: Console, *, is_shown: bool
) -> Reply:
    reply = Reply()
    body = {**options, "messages": conversation.messages, "stream_options": {"include_usage": True}}
    last = ""
    for chunk in api.chunks("/v1/chat/completions", body):
        for piece in reply.add(chunk):
            if is_shown:
                _show(screen, piece, last)
            last = piece.kind
    if is_shown:
        screen.print()
    return reply


def _show(screen: Console, piece: Piece, last: str) -> None:
    """Where nobody looks, the answer only: what is piped on must not hold reasoning."""
    if not screen.is_terminal:
        if piece.kind != "reasoning":
            screen.file.write(piece.text)
        return
    if last and last != piece.kind and piece.kind == "content":
        screen.print()
    style = STYLES[piece.kind]
    screen.print(piece.text, end="", style=style or None, markup=False, highlight=False, soft_wrap=True)


def _question() -> str | None:
    """None: the end."""
    try:
        line = _line("> ")
        if line.startswith(MANY_LINES):
            lines = [line.removeprefix(MANY_LINES)]
            while not lines[-1].endswith(MANY_LINES):
                lines.append(_line(". "))
            return "\n".join(lines).removesuffix(MANY_LINES).strip()
        while line.endswith("\\"):
            line = line[:-1] + "\n" + _line(". ")
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""
    return line.strip()


def _line(mark: str) -> str:
    return Console().input(mark)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Of the questions, kept from one talk to the next for this user's eyes only."""
    file = cache_directory() / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a home that cannot be written to is no reason not to talk
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)
            readline.write_history_file(file)


def _options(max_tokens: int | None, temperature: float | None, seed: int | None) -> dict[str, Any]:
    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def _tools(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fail(f"{file} holds no tools: {error}")


@contextlib.contextmanager
def _api(url: str | None, key: str | None) -> Iterator[Api]:
    from cluster.api_client import Api, ApiError, Place

    try:
        with Api(Place(url=api_place(url), key=key or "")) as api:
            yield api
    except ApiError as error:
        fail(str(error))
    except KeyboardInterrupt:
        console.print("cut")
        raise typer.Exit(EXIT_CUT) from None
