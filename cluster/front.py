"""The ingress as Ray Serve runs it.

The FastAPI app is built inside the replica and follows the controller's list of attention actors. Knows
nothing of HTTP or models.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from actors.exposition import MetricsServer
from cluster.hosts import HERE, seat_for
from cluster.processes import Greeting
from cluster.ray_processes import NAMESPACE, node_address
from cluster.serve_bounds import without_grpc
from cluster.spec import wants_spans
from ingress.app import create_app
from ingress.engine_client import EngineClient
from ingress.keys import KeyRing
from ingress.limits import Limits
from ingress.link import Endpoint
from ingress.tokens import Tokenizer

logger = logging.getLogger(__name__)

APPLICATION = "shoal"
CONTROLLER_NAME = "controller"
FOLLOW_S = 0.2
FOLLOW_TIMEOUT_S = 5.0
MAX_ONGOING = 4096  # admission is the app's own, with OpenAI-shaped refusals; Serve must not queue before it
DRAIN_S = 300.0  # in which the streams of a replica that is to end do so by themselves


@dataclass(frozen=True, kw_only=True, slots=True)
class FrontOptions:
    """What an ingress replica is told. has_seat: it starts only on a node with a seat for it."""

    directory: str
    model_name: str
    aliases: tuple[str, ...]
    context_tokens: int
    max_queue_s: float
    max_body_bytes: int
    token: bytes
    replicas: int
    host: str
    port: int
    prefix_cache: bool
    metrics_host: str
    api_keys: str | None
    has_seat: bool


class Front:
    """The ingresses. Serve replaces them, and what dies; whoever holds this says when all are to be."""

    def __init__(self, options: FrontOptions) -> None:
        self._options = options
        self._renewal: threading.Thread | None = None

    def deploy(self) -> None:
        """Start Serve and the ingress, or leave those that serve already; returns when they answer."""
        serve.start(
            http_options=HTTPOptions(host=self._options.host, port=self._options.port),
            logging_config=_quiet(),
        )
        if not _is_deployed():
            _run(self._options)

    @property
    def is_renewing(self) -> bool:
        return self._renewal is not None and self._renewal.is_alive()

    def renew(self) -> str:
        """Replace every replica, one after another, each when its streams have ended; says so at once."""
        if self._options.replicas == 1:  # Serve ends one before it begins the next
            return "; the only ingress replica stays: without it nobody takes new requests"
        if not self.is_renewing:
            self._renewal = threading.Thread(target=_run, args=(self._options,), name="renewal", daemon=True)
            self._renewal.start()
        return f"; {self._options.replicas} ingress replicas as well"


def _quiet() -> LoggingConfig:
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return LoggingConfig(enable_access_log=False, log_level="WARNING")


def _run(options: FrontOptions) -> None:
    """Returns when all replicas are of this deployment; each call's is another, so those of before go."""
    builder: Any = serve.ingress(_builder(options))
    deploy_class: Any = serve.deployment
    deployment = deploy_class(
        builder(),
        name="ingress",
        num_replicas=options.replicas,
        max_ongoing_requests=MAX_ONGOING,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={
            "num_cpus": 0,
            "resources": {seat_for("ingress"): 1} if options.has_seat else {},
        },
        logging_config=_quiet(),
    )
    serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")


def _is_deployed() -> bool:
    application = serve.status().applications.get(APPLICATION)
    return application is not None and application.status in ("RUNNING", "DEPLOYING")


def key_ring(file: str | None) -> KeyRing | None:
    return None if file is None else KeyRing(Path(file), time.monotonic)


def _builder(options: FrontOptions) -> Callable[[], FastAPI]:
    """Serve calls the result inside each replica."""

    def build() -> FastAPI:
        without_grpc()
        directory = Path(options.directory)
        identity = f"ingress-{secrets.token_hex(4)}"
        engine = EngineClient(
            [],
            token=options.token,
            identity=identity,
            prefix_cache=options.prefix_cache,
        )
        host = node_address() if options.metrics_host == HERE else options.metrics_host
        if wants_spans():
            from ingress.spans import otlp_processor, teller

            engine.metrics.on_end = teller(otlp_processor(), identity)
        metrics = MetricsServer(engine.metrics.samples, host)
        app = create_app(
            engine=engine,
            tokenizer=Tokenizer.from_file(directory / "tokenizer.json"),
            model_name=options.model_name,
            aliases=options.aliases,
            context_tokens=options.context_tokens,
            limits=Limits(max_queue_s=options.max_queue_s, body_bytes=options.max_body_bytes),
            keys=key_ring(options.api_keys),
            replicas=options.replicas,
        )
        app.router.lifespan_context = _following(
            engine, Greeting(identity, host, metrics.port), app.router.lifespan_context
        )
        return app

    return build


def _following(engine: EngineClient, greeting: Greeting, inner: Any) -> Any:
    """The app's lifespan with a task beside it that follows the controller."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            task = asyncio.create_task(_follow(engine, greeting))
            try:
                yield
            finally:
                task.cancel()

    return lifespan


async def _follow(engine: EngineClient, greeting: Greeting) -> None:
    """Keep the engine's endpoints as the controller has them; a dead controller leaves them as they were.

    It is told of what has ended, which it forgets when it dies.
    """
    known: list[tuple[str, str, int, bool]] = []
    while True:
        try:
            controller = ray.get_actor(CONTROLLER_NAME, namespace=NAMESPACE)
            async with asyncio.timeout(FOLLOW_TIMEOUT_S):
                ended = [took.journey() for took in engine.metrics.take_recent()]
                endpoints = await controller.endpoints.remote(greeting, ended)
            if endpoints != known:
                known = endpoints
                engine.update(
                    [
                        Endpoint(actor_id=actor_id, host=host, port=port, draining=is_leaving)
                        for actor_id, host, port, is_leaving in endpoints
                    ]
                )
        except (ValueError, TimeoutError, ray.exceptions.RayError) as error:
            logger.warning("controller unreachable, keeping %d endpoints: %s", len(known), error)
        await asyncio.sleep(FOLLOW_S)
