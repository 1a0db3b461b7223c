"""The demo model behind real sockets, in one process.

`python -m tests.contracts.server KEYS CONTEXT`: an attention actor that holds every expert, and the
application before it; prints its URL once it serves. Without Ray, so that it is there in seconds. Knows
nothing of its clients.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from bench.local import embedded_actor
from cluster.embedded import embedded_directory
from ingress.app import create_app
from ingress.connection import BoundedProtocol
from ingress.engine_client import EngineClient
from ingress.keys import KeyRing
from ingress.link import Endpoint
from ingress.tokens import Tokenizer

MODEL = "shoal-demo"


def main() -> None:
    keys, context_tokens = Path(sys.argv[1]), int(sys.argv[2])
    directory, token = embedded_directory(), secrets.token_bytes(16)
    server, loaded = embedded_actor("attention-0", token, context_tokens=context_tokens, cache_tokens=16384)
    threading.Thread(target=server.run, daemon=True).start()
    place = Endpoint(actor_id="attention-0", host=loaded.host, port=loaded.port)
    app = create_app(
        engine=EngineClient([place], token=token, identity="door"),
        tokenizer=Tokenizer.from_file(directory / "tokenizer.json"),
        model_name=MODEL,
        context_tokens=context_tokens,
        keys=KeyRing(keys, time.monotonic),
    )
    asyncio.run(serve(app))


async def serve(app: FastAPI) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sys.stdout.write(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}) + "\n")
    sys.stdout.flush()
    await uvicorn.Server(
        uvicorn.Config(app, http=BoundedProtocol, log_level="warning", access_log=False)
    ).serve([listener])


if __name__ == "__main__":
    main()
