"""`shoal chat`, `complete`, `status`: what is shown is what came, on a terminal or not."""

# ruff: noqa: RUF001 - the special tokens are spelled with bars that are not ASCII

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster import beacon
from cluster.admin import AdminServer
from cluster.cli import app
from cluster.conversation import Conversation, Reply
from tests.unit.app_server import Served, says, spelled
from tests.unit.test_admin import KEY, Still

CALL = """Let me look.

<｜DSML｜function_calls>
<｜DSML｜invoke name="weather">
<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
</｜DSML｜invoke>
</｜DSML｜function_calls>"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def shoal(served: Served, *arguments: str, stdin: str | None = None) -> Result:
    url = str(served.http.base_url)
    return CliRunner().invoke(app, [*arguments, "--url", url], input=stdin)


def test_a_piped_chat_is_the_answer_and_nothing_else(served: Served):
    says(served, spelled(served.tokenizer, "let me see</think>42"))
    done = shoal(served, "chat", "What is 6 * 7?", "--thinking")
    assert (done.exit_code, done.stdout) == (0, "42\n")
    told = json.loads(shoal(served, "chat", "What is 6 * 7?", "--thinking", "--json").stdout)
    assert (told["content"], told["reasoning_content"], told["finish_reason"]) == ("42", "let me see", "stop")
    assert told["usage"]["completion_tokens"] > 0


def test_calls_are_shown_and_told(served: Served, tmp_path: Path):
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS))
    says(served, spelled(served.tokenizer, CALL), tokens_per_event=7)
    asked = ("chat", "Paris?", "--tools", str(tools), "--max-tokens", "900")
    assert shoal(served, *asked).stdout == 'Let me look.\nweather {"city": "Paris"}\n'
    [call] = json.loads(shoal(served, *asked, "--json").stdout)["tool_calls"]
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}


def test_a_question_may_come_from_stdin_and_options_reach_the_engine(served: Served):
    says(served, "yes")
    given = ("--max-tokens", "7", "--temperature", "0", "--seed", "5")
    assert shoal(served, "chat", "-", *given, stdin="one\ntwo\n").stdout == "yes\n"
    assert shoal(served, "complete", *given, stdin="one").stdout == "yes\n"
    assert json.loads(shoal(served, "complete", "one", "--json").stdout) == {
        "text": "yes",
        "finish_reason": "stop",
    }
    samplings = [submit.sampling for actor in served.actors for submit in actor.submits]
    assert {(s["max_tokens"], s["seed"]) for s in samplings if s["seed"] == 5} == {(7, 5)}


def test_what_a_server_refuses_is_said_in_its_words(served: Served):
    refused = shoal(served, "chat", "hello", "--temperature", "9")
    assert refused.exit_code == 1
    assert "temperature: Input should be less than or equal to 2" in " ".join(refused.stderr.split())
    says(served, "x", fail=True)
    assert "could not finish" in shoal(served, "complete", "hello").stderr
    nobody = CliRunner().invoke(app, ["chat", "hello", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 1 and "does not answer" in nobody.stderr


def test_a_conversation_sends_back_what_was_said_and_reasoning_only_with_calls():
    conversation = Conversation.begun("be brief")
    conversation.ask("a")
    reply = Reply()
    list(reply.add({"choices": [{"delta": {"reasoning_content": "r", "content": "b"}}]}))
    conversation.answered(reply)
    conversation.ask("c")
    conversation.unask()
    conversation.unask()
    assert conversation.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    calling = Reply(reasoning="r", calls=[{"id": "1"}])
    assert calling.message()["reasoning_content"] == "r"


def talk(served: Served, typed: list[tuple[str, str]], home: Path) -> str:
    """On a real terminal: (what must be on the screen, what is typed then)."""
    command = [sys.executable, "-m", "cluster.cli", "chat", "--thinking", "--url", str(served.http.base_url)]
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "XDG_CACHE_HOME": str(home)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    shown = ""

    def until(words: str) -> str:
        nonlocal shown
        while words not in shown:
            assert select.select([controller], [], [], 30)[0], shown
            shown += os.read(controller, 65536).decode(errors="replace")
        before, _, shown = shown.partition(words)
        return before + words

    seen = ""
    try:
        for words, text in typed:
            seen += until(words)
            os.write(controller, text.encode())
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(controller)
    return seen


def test_a_talk_on_a_terminal_dims_reasoning_and_takes_many_lines(served: Served, tmp_path: Path):
    says(served, spelled(served.tokenizer, "let me see</think>forty-two"), tokens_per_event=100)
    seen = talk(
        served,
        [("/quit", '"""one\n'), (". ", 'two"""\n'), ("forty-two", "again\n"), ("forty-two", "/quit\n")],
        tmp_path,
    )
    assert "\x1b[2;3mlet me see" in seen, "dim and slanted"
    first, second = sorted(submit.num_prompt for actor in served.actors for submit in actor.submits)
    assert first > len("one two")
    assert second > first + len("forty-two") + len("again"), "what was said is sent back"
    assert (tmp_path / "shoal" / "chat_history").stat().st_mode & 0o077 == 0


def test_status_says_whether_all_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Starting(Still):
        def snapshot(self) -> dict[str, Any]:
            return {**super().snapshot(), "ready": False}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SHOAL_ADMIN_KEY", raising=False)
    assert CliRunner().invoke(app, ["status"]).exit_code == 1
    for cluster, code, words in ((Still(), 0, ": ready"), (Starting(), 1, ": not ready")):
        admin = AdminServer(cluster, "127.0.0.1", 0, KEY)
        try:
            with beacon.lit(admin.url, KEY):
                plain = CliRunner().invoke(app, ["status"])
                assert plain.exit_code == code
                assert words in plain.stdout and "expert-0" in plain.stdout and "1 deaths" in plain.stdout
                told = json.loads(CliRunner().invoke(app, ["status", "--json"]).stdout)
                assert told["ready"] is (code == 0) and len(told["actors"]) == 2
        finally:
            admin.close()
