"""The deployment as its user describes it.

One YAML file or the same fields as flags; validated once, with errors that name field, value and remedy. The
only place that reads the environment. Knows nothing of Ray.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from actors.options import MicroBatches, WeightsFrom
from cluster.autoscale import Bounds
from ingress.limits import ConnectionLimits

CONNECTIONS = "SHOAL_CONNECTIONS"
RANDOM = "random:"  # of model, before the number of layers: weights of noise
# Defaults there, and all that is served so far.
ON_CUDA = {"dtype": "fp8", "experts": 0, "standbys": 0, "threads": 1}
QUICK_ON_CUDA = {"chunk_tokens": 512}  # defaults there: such a chunk beside all that decode is one graph
JOINED = {"standbys": 0, "data_host": "node", "host": "0.0.0.0"}  # defaults where a Ray cluster is joined


class SpecError(ValueError):
    """The description cannot be served; the text names the field, its value and what to do."""


class ShoalSpec(BaseModel):
    """What to serve and with how many processes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str | None = Field(
        None,
        description="checkpoint directory, or random:LAYERS (on cuda: noise of true width); none: embedded",
    )
    served_model_name: str | None = Field(None, description="name in /v1/models; none: the directory's name")
    aliases: list[Annotated[str, StringConstraints(min_length=1, max_length=128)]] = Field(
        [], max_length=64, description="more names that requests may call it by, as deepseek-chat"
    )
    attention: int = Field(1, ge=1, le=256, description="attention actors")
    experts: int = Field(
        2, ge=0, le=1024, description="expert actors; 0: experts live in the attention actors"
    )
    replicas_per_expert: int = Field(
        1, ge=1, le=16, description="copies of each expert at least, on distinct actors"
    )
    redundant_slots: int = Field(
        0, ge=0, le=65536, description="more copies, of the experts with most load, in each layer"
    )
    standbys: int = Field(
        1, ge=0, le=64, description="processes that wait, warm, to take the place of what dies"
    )
    rebalance_s: float = Field(
        30.0, ge=0, le=86400, description="seconds between looks at the balance of the experts; 0: never"
    )
    autoscale: dict[Literal["experts", "attention"], str] = Field(
        {}, description="how many actors there may be, as {experts: 2-6}; none: as many as ordered"
    )
    weights_from: WeightsFrom = Field(
        "files",
        description="who is asked first for experts that another actor holds; peers: where files are slow",
    )
    ingress: int = Field(1, ge=1, le=64, description="ingress replicas")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the model runs; cuda: all of it on one GPU, in FP8"
    )
    dtype: Literal["float32", "bfloat16", "int8", "fp8"] = Field(
        "float32",
        description="weights, activations and cache; int8: operands of products, the rest float32; fp8: cuda",
    )
    host: str = Field("127.0.0.1", description="address of the HTTP listener")
    port: int = Field(8000, ge=1, le=65535, description="port of the HTTP listener")
    address: str | None = Field(
        None, description="Ray cluster to join, HOST:PORT of its GCS; none: a private one on this machine"
    )
    api_keys: str | None = Field(
        None, description="file of API keys, made with `shoal keys add`; none: everybody may ask"
    )
    serve_without_keys: bool = Field(
        False, description="let everybody ask who reaches a host that is not loopback"
    )
    max_body_bytes: int = Field(1 << 20, ge=1024, le=1 << 30, description="longest request body")
    max_connections: int = Field(4096, ge=1, le=65536, description="clients' connections at once, per proxy")
    max_connections_per_address: int = Field(
        1024, ge=1, le=65536, description="of one client address; behind a reverse proxy: of everybody"
    )
    admin_host: str = Field("127.0.0.1", description="address of the admin listener")
    admin_port: int = Field(
        0, ge=0, le=65535, description="port of the admin listener (live page, metrics); 0: any that is free"
    )
    data_host: str = Field(
        "127.0.0.1",
        description="address that actors' sockets bind to; node: each that of the Ray node it is on",
    )
    context_tokens: int | None = Field(None, ge=64, description="longest prompt + answer; none: the model's")
    cache_tokens: int = Field(
        65536,
        ge=128,
        description="tokens of latent cache in each attention actor; on cuda, if not set, what is free",
    )
    chunk_tokens: int = Field(128, ge=1, le=65536, description="prefill is cut at multiples of this")
    max_sequences: int = Field(64, ge=1, le=4096, description="sequences in one step of an attention actor")
    max_queue: int = Field(1024, ge=1, le=65536, description="sequences waiting in an attention actor")
    max_queue_s: float = Field(
        60.0, gt=0, le=86400, description="longest (estimated) wait of an interactive request to begin"
    )
    draft_tokens: int | None = Field(
        None, ge=0, le=8, description="tokens drafted ahead by the MTP layer; none: 1 if the model has one"
    )
    prefix_cache: bool = Field(True, description="keep the pages of past prompts for those that begin alike")
    micro_batches: MicroBatches = Field(
        "auto", description="of a step, one hiding the experts of the other; auto: 2 where it is quicker"
    )
    threads: int = Field(
        1, ge=1, le=2, description="of an attention actor that computes on a CPU; 2: where cores are its own"
    )
    answer_timeout_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="an expert that owes an answer for so long counts as lost, though it beats",
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_elsewhere(cls, fields: dict[str, Any]) -> dict[str, Any]:
        joined = JOINED if fields.get("address") else {}
        on_cuda = {**ON_CUDA, **QUICK_ON_CUDA} if fields.get("device") == "cuda" else {}
        return {**joined, **on_cuda, **fields}

    @model_validator(mode="after")
    def _fits_its_device(self) -> Self:
        if self.device == "cuda":
            for name, only in ON_CUDA.items():
                if getattr(self, name) != only:
                    raise ValueError(
                        f"{name} is {getattr(self, name)}: with device cuda it is {only}, because all of the "
                        "model lives in FP8 on each attention actor's GPU; leave it out"
                    )
        elif self.dtype == "fp8":
            raise ValueError("dtype is fp8: needs --device cuda; on a CPU int8 is the smallest")
        elif self.model is not None and self.model.startswith(RANDOM):
            raise ValueError(
                f"model is {self.model}: such weights are made on a GPU (--device cuda); for a CPU write "
                "small ones with `shoal make-tiny`"
            )
        if self.address and self.model is not None and self.model.startswith(RANDOM):
            raise ValueError(
                f"model is {self.model}: other nodes know no such name; write a checkpoint where all of them "
                "see it, with `shoal make-tiny --true-width`"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.address and self.standbys:
            raise ValueError(
                f"standbys is {self.standbys}: one that waits for any part has no seat on nodes of one part; "
                "with address set it to 0"
            )
        if self.experts == 0 and self.replicas_per_expert > 1:
            raise ValueError("replicas_per_expert needs expert actors: set experts to at least 2")
        if self.experts == 0 and self.redundant_slots:
            raise ValueError("redundant_slots needs expert actors: set experts to at least 2")
        for kind, bounds in self.bounds.items():
            least = max(1, self.replicas_per_expert) if kind == "expert" else 1
            if not least <= bounds.least <= bounds.most <= 1024 or (kind == "expert" and not self.experts):
                raise ValueError(
                    f"autoscale of {kind} actors is {bounds.least}-{bounds.most}: must be LEAST-MOST, from "
                    f"{least} to 1024, and experts needs expert actors"
                )
        if self.experts and self.replicas_per_expert > self.experts:
            raise ValueError(
                f"replicas_per_expert is {self.replicas_per_expert}: replicas live on distinct actors, "
                f"so raise experts from {self.experts}"
            )
        if self.api_keys is None and not self.serve_without_keys and not _is_loopback(self.host):
            raise ValueError(
                f"host is {self.host}: everybody who reaches it could use the model; make a key with "
                "`shoal keys add FILE NAME` and give --api-keys FILE, or say --serve-without-keys"
            )
        return self

    @staticmethod
    def from_sources(file: Path | None, flags: Mapping[str, Any]) -> ShoalSpec:
        """Flags over file over defaults; raises SpecError with one line per problem."""
        fields = {**(_read_yaml(file) if file else {}), **{k: v for k, v in flags.items() if v is not None}}
        try:
            return ShoalSpec(**fields)
        except ValidationError as error:
            where = f"{file}: " if file else ""
            raise SpecError("\n".join(where + _explain(problem) for problem in error.errors())) from None

    @property
    def told_cache_tokens(self) -> int | None:
        """None: on a GPU, where nobody said how many, it is what it has room for."""
        is_open = self.device == "cuda" and "cache_tokens" not in self.model_fields_set
        return None if is_open else self.cache_tokens

    @property
    def bounds(self) -> dict[str, Bounds]:
        """Of the autoscaler, by kind of actor."""
        found: dict[str, Bounds] = {}
        for name, text in self.autoscale.items():
            least, dash, most = text.partition("-")
            if not (dash and least.isdecimal() and most.isdecimal()):
                raise ValueError(f"autoscale of {name} is {text[:40]!r}: must be LEAST-MOST, as 2-6")
            found["expert" if name == "experts" else name] = Bounds(least=int(least), most=int(most))
        return found

    @property
    def value_bytes(self) -> int:
        """Of a cached value, and of a weight of the attention side (int8: most are one, an upper bound).

        On a CPU: what lies on a GPU is counted in model/memory.py.
        """
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def expert_value_bytes(self) -> int:
        """Of a weight of a routed expert."""
        return 1 if self.dtype == "int8" else self.value_bytes


def admin_key() -> str:
    """Of the admin listener: SHOAL_ADMIN_KEY, or another at every start."""
    return os.environ.get("SHOAL_ADMIN_KEY") or secrets.token_urlsafe(24)


def wants_spans() -> bool:
    """Whether OpenTelemetry's own variables name where to send them."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(os.environ.get(name) for name in names)


def tell_connection_limits(spec: ShoalSpec) -> None:
    """To processes that Ray starts, and nobody hands arguments: before it starts."""
    os.environ[CONNECTIONS] = f"{spec.max_connections} {spec.max_connections_per_address}"


def connection_limits_of(spec: ShoalSpec) -> ConnectionLimits:
    return ConnectionLimits(connections=spec.max_connections, per_address=spec.max_connections_per_address)


def connection_limits() -> ConnectionLimits:
    """As told in this process's environment."""
    told = os.environ.get(CONNECTIONS)
    if told is None:
        return ConnectionLimits()
    connections, per_address = map(int, told.split())
    return ConnectionLimits(connections=connections, per_address=per_address)


def cache_directory() -> Path:
    """Where checkpoints made to be measured are kept between runs (XDG_CACHE_HOME, or ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "shoal"


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; of a name other than localhost nobody knows."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecError(
            f"{file} cannot be read: {error.strerror}; check the path given to --config"
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise SpecError(f"{file} holds a {type(raw).__name__}: expected fields such as `experts: 2`")
    return {str(key): value for key, value in raw.items()}


def _explain(problem: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "spec"
    if problem["type"] == "extra_forbidden":
        known = ", ".join(ShoalSpec.model_fields)
        return f"{name} is not a field; known fields: {known}"
    if not problem["loc"]:
        return str(problem["msg"]).removeprefix("Value error, ")
    about = ShoalSpec.model_fields[str(problem["loc"][0])].description
    return f"{name} is {problem['input']!r}: {problem['msg']} ({about})"
