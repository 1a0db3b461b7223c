"""Whether the engine makes a token, now.

What `/health?generate=1` asks: a request of one token, like any other. Knows nothing of HTTP.

Errors: Overloaded, DeadlineExceeded, EngineError (ingress/errors.py).
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing

from actors.messages import FINISH_DEADLINE, FINISH_LENGTH, Sampling
from ingress.engine_client import Call, EngineClient
from ingress.errors import DeadlineExceeded, EngineError

PATIENCE_S = 10.0
PROMPT = (0,)  # every vocabulary has a first token


async def one_token(engine: EngineClient) -> None:
    """Returns when a token was made; raises where none is within PATIENCE_S."""
    sampling = Sampling(max_tokens=1, temperature=0.0, ignore_eos=True)
    call = Call(deadline_s=asyncio.get_running_loop().time() + PATIENCE_S)
    name = f"health-{secrets.token_hex(16)}"
    async with aclosing(engine.generate(name, PROMPT, sampling, call)) as events:
        async for event in events:
            if event.finish == FINISH_DEADLINE:
                raise DeadlineExceeded("no token came in time", retry_after_s=engine.wait_s)
            if event.finish not in (None, FINISH_LENGTH):
                raise EngineError("the engine made no token")
