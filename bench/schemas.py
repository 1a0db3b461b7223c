"""Whether answers keep to their schemas, a thousand times.

`python -m bench.schemas [--samples N]`: random bounded schemas, greedy and sampled in turn, on a model of
random weights. Each answer must end, parse and validate. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Annotated

import torch
import typer
from jsonschema import Draft202012Validator, ValidationError

from actors.engine import Engine
from actors.matchers import matcher_of
from bench.local import local_engine
from bench.random_schema import Schema, random_schema
from bench.report import stdout_console
from ingress.json_grammar import JsonRules
from ingress.tokenizer_file import write_byte_tokenizer
from ingress.tokens import Tokenizer
from model.checkpoint import Checkpoint
from model.grammar import Grammars
from model.sampling import Sampling
from model.tiny import write_tiny

TOGETHER = 32
MAX_TOKENS = 1000
PROMPT = [40, 50, 60]


def main(
    samples: Annotated[int, typer.Option(help="Schemas.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the first; the same again gives the same.")] = 0,
) -> None:
    """Exit with 1 if an answer does not keep to its schema."""
    torch.set_num_threads(1)
    console = stdout_console()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_tiny(directory, preset="test", seed=7)
        write_byte_tokenizer(directory)
        tokenizer = Tokenizer.from_file(directory / "tokenizer.json")
        opened = Checkpoint.open(directory)
        config = opened.config_to_serve(draft_tokens=0)
        engine = local_engine(opened, context_tokens=MAX_TOKENS + len(PROMPT) + 1, num_sequences=TOGETHER)
        grammars = Grammars(directory, vocab_size=config.vocab_size, end_ids=config.eos_token_ids)
        faults, num_tokens = 0, 0
        for first in range(seed, seed + samples, TOGETHER):
            schemas = [
                random_schema(Random(one)) for one in range(first, min(first + TOGETHER, seed + samples))
            ]
            for schema, (ids, finish) in zip(schemas, _answers(engine, grammars, schemas), strict=True):
                num_tokens += len(ids)
                fault = _fault(schema, tokenizer.decode(ids), finish)
                if fault is not None:
                    faults += 1
                    console.print(f"{json.dumps(schema)}: {fault}")
    console.print(f"{samples - faults} of {samples} answers keep to their schemas, {num_tokens} tokens")
    raise typer.Exit(1 if faults else 0)


def _answers(
    engine: Engine, grammars: Grammars, schemas: Sequence[Schema]
) -> list[tuple[list[int], str | None]]:
    """Token ids and why they end, of all made together."""
    for place, schema in enumerate(schemas):
        rule = JsonRules(is_strict=True).rule(schema, "schema")
        sampling = Sampling(
            max_tokens=MAX_TOKENS, temperature=float(place % 2), seed=place, grammar=f"start: {rule}\n"
        )
        matcher = matcher_of(grammars, grammars.compile(sampling.grammar), sampling)
        assert engine.submit("bench", str(place), PROMPT, [], sampling, matcher=matcher) is None
    made: list[tuple[list[int], str | None]] = [([], None) for _ in schemas]
    while engine.has_work:
        for event in (event for own in engine.step().values() for event in own):
            ids, _ = made[int(event.request_id)]
            made[int(event.request_id)] = ([*ids, *event.token_ids], event.finish)
    return made


def _fault(schema: Schema, text: str, finish: str | None) -> str | None:
    if finish != "stop":
        return f"ended with {finish}"
    try:
        Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, ValidationError) as error:
        return f"{text!r}: {error}"
    return None


if __name__ == "__main__":
    typer.run(main)
