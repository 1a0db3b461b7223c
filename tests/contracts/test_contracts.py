"""Clients and tools of others are at home: each runs to its end against the real model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.contracts.conftest import CLIENTS, TOOLS, Model

pytestmark = pytest.mark.contracts
NAME = "shoal-demo"
SAMPLES = [(a, b) for a in range(3) for b in (4, 7)]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)
COVERED = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/messages/count_tokens", "/tokenize", "/detokenize"),
)


@pytest.fixture(autouse=True)
def unhurt(model: Model):
    """After each the model answers as before."""
    yield
    model.run("python", CLIENTS / "good.py")


@pytest.mark.parametrize("client", sorted(path.stem for path in CLIENTS.glob("client_*.py")))
def test_a_client_is_at_home(model: Model, client: str):
    """Streams as answers, tools, structured output, reasoning, error classes, streams that are left."""
    quiet = ("-q", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider")
    alone = ("-c", "/dev/null", "--rootdir", CLIENTS, "--confcutdir", CLIENTS)
    model.run("python", "-m", "pytest", *alone, *quiet, CLIENTS / f"{client}.py", cwd=CLIENTS)


def test_the_ai_sdk_is_at_home(model: Model):
    if shutil.which("node") is None or not (TOOLS / "node/node_modules").exists():
        pytest.skip("there is no node here, or its packages are not installed: `make contracts`")
    script = shutil.copy(CLIENTS / "client_ai_sdk.mjs", TOOLS / "node")  # where it finds its packages
    model.run("node", "--test", script)


def schemathesis(model: Model, *words: str | int) -> None:
    """Of our own document; OpenAI's routes under one prefix only."""
    told = model.run(
        *("schemathesis", "--config-file", CLIENTS.parent / "schemathesis.toml", "run"),
        *(f"{model.url}/openapi.json", "--url", model.url, "-H", f"Authorization: Bearer {model.key}"),
        *("--checks", CHECKS, "--generation-database", ":memory:", "--no-color"),
        *("--request-timeout", 90),  # it also asks for a thousand answers at once
        *("--exclude-path-regex", "^/(beta|anthropic|chat|completions|models)", *words),
    )
    assert "No issues found" in told, told[-3000:]


@pytest.mark.parametrize("seed", [1, 2])
def test_schemathesis_finds_no_fault_of_ours_in_our_own_document(short_model: Model, seed: int):
    """A sample of each operation, drawn from the seed."""
    schemathesis(short_model, "--phases", "examples,fuzzing", "--max-examples", 15, "--seed", seed)


@pytest.mark.parametrize("path", COVERED)
def test_schemathesis_finds_no_fault_of_ours_at_the_edges_of_a_field(short_model: Model, path: str):
    """Its coverage phase: each bound of each field met and passed; two minutes at most."""
    schemathesis(short_model, "--phases", "coverage", "--max-time", 120, "--seed", 1, "--include-path", path)


def write_tasks(folder: Path) -> None:
    """Sums, to be chosen and to be said."""
    rows = [{"question": f"{a} + {b} = ", "choices": [str(a + b), str(a + b + 1)]} for a, b in SAMPLES]
    (folder / "sums.jsonl").write_text("".join(json.dumps({**row, "answer": 0}) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "sums.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choose = {
        "task": "sums_chosen",
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    say = {
        "task": "sums_said",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choose, say):
        (folder / f"{task['task']}.yaml").write_text(yaml.safe_dump({**common, **task}))


def test_lm_eval_scores_and_generates(model: Model, tmp_path: Path):
    write_tasks(tmp_path)
    arguments = {
        "model": NAME,
        "base_url": f"{model.url}/v1/completions",
        "tokenizer_backend": "remote",
        "auth_token": model.key,
        "num_concurrent": 2,
    }
    told = model.run(
        *("lm_eval", "run", "--model", "local-completions", "--include_path", tmp_path),
        *("--model_args", ",".join(f"{name}={value}" for name, value in arguments.items())),
        *("--tasks", "sums_chosen,sums_said"),
    )
    assert "sums_chosen" in told and "exact_match" in told


def test_aiperf_runs_to_its_end_while_half_of_its_requests_leave(model: Model, checkpoint: Path):
    model.run(
        *("aiperf", "profile", "--model", NAME, "--url", model.url, "--api-key", model.key),
        *("--endpoint-type", "chat", "--streaming", "--concurrency", 4, "--request-count", 16),
        *("--request-cancellation-rate", 50, "--request-cancellation-delay", 0.2),
        *("--synthetic-input-tokens-mean", 32, "--output-tokens-mean", 16, "--tokenizer", checkpoint),
        *("--artifact-dir", model.folder / "aiperf", "--ui", "none"),
    )


def test_guidellm_runs_to_its_end(model: Model, checkpoint: Path):
    backend = f"target={model.url},model={NAME},api_key={model.key},validate_backend=false"
    report = model.folder / "guidellm.json"
    model.run(
        *("guidellm", "run", "--backend", f"kind=openai_http,{backend}"),
        *("--tokenizer", f"kind=huggingface_auto,model={checkpoint}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"),
        *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=8"),
        *("--disable-console-interactive", "--output", f"kind=json,path={report}"),
    )
    assert json.loads(report.read_text())["benchmarks"]
