"""What a client is told when a request fails.

Every failure becomes the same bounded JSON of four keys. Knows nothing of routes, fields or engines: they
raise.

    RequestError
        InvalidRequest          400 invalid_request_error
            ContextTooLong      400 context_length_exceeded
        Unauthorized            401 invalid_api_key
        NotFound                404
            ModelNotFound       404 model_not_found
        MethodNotAllowed        405
        RequestTimeout          408
        BodyTooLarge            413
        UnsupportedMediaType    415
        HeadTooLarge            431
        Overloaded              429 rate_limit_exceeded or 503 overloaded, says when to try again
            RateLimited         429 rate_limit_exceeded, of the key's own limits
            DeadlineExceeded    504 deadline_exceeded
        EngineError             500 server_error
            EngineCrashed       500 engine_crashed
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_MESSAGE_CHARS = 1500  # twice that as escaped JSON: the whole answer stays under 4 KiB
MAX_PARAM_CHARS = 200
MAX_FAULTS = 10
MAX_FAULT_CHARS = 140
MESSAGE_PATHS = ("/v1/messages", "/v1/messages/count_tokens")
MESSAGE_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class RequestError(Exception):
    """A request that ends here; the message is for the client."""

    status: ClassVar[int] = 400
    kind: ClassVar[str] = "invalid_request_error"
    default_code: ClassVar[str | None] = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code

    @property
    def http_status(self) -> int:
        return self.status

    @property
    def headers(self) -> dict[str, str]:
        return {}


class InvalidRequest(RequestError):  # noqa: N818 - named for what happened, as the rest of the tree
    """The client can mend it: `param` names the field."""


class ContextTooLong(InvalidRequest):
    """Prompt and wanted tokens do not fit in the model's context."""

    default_code = "context_length_exceeded"


class Unauthorized(RequestError):  # noqa: N818
    """No key, or none that is known. The type is DeepSeek's and Anthropic's, the code OpenAI's."""

    status = 401
    kind = "authentication_error"
    default_code = "invalid_api_key"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class NotFound(RequestError):  # noqa: N818
    status = 404
    default_code = "not_found"


class ModelNotFound(NotFound):
    default_code = "model_not_found"


class MethodNotAllowed(RequestError):  # noqa: N818
    status = 405
    default_code = "method_not_allowed"


class RequestTimeout(RequestError):  # noqa: N818
    """The client took too long to send its request."""

    status = 408
    default_code = "request_timeout"


class BodyTooLarge(RequestError):  # noqa: N818
    status = 413
    default_code = "request_too_large"


class UnsupportedMediaType(RequestError):  # noqa: N818
    status = 415
    default_code = "unsupported_media_type"


class HeadTooLarge(RequestError):  # noqa: N818
    status = 431
    default_code = "request_header_fields_too_large"


class Overloaded(RequestError):  # noqa: N818
    """Nobody can take the request now. 503: ours to mend; 429: this client sends too much.

    The text says when to try again, too: in a stream that has begun there are no headers left to say it in.
    """

    status = 503
    kind = "overloaded_error"
    default_code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, status: int = 503) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        # A code of its own: in a stream that has begun there is no status to tell it by, either.
        code = "rate_limit_exceeded" if status == 429 else None
        super().__init__(f"{message}; try again in {self.retry_after_s} s", code=code)
        self._status = status

    @property
    def http_status(self) -> int:
        return self._status

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class RateLimited(Overloaded):
    """The key has used what its entry allows."""

    kind = "rate_limit_error"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s, status=429)


class DeadlineExceeded(Overloaded):
    """The request's own deadline passed before its first token."""

    kind = "timeout_error"
    default_code = "deadline_exceeded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=retry_after_s, status=504)


class EngineError(RequestError):
    """Our fault. The message says no more than the client needs; the log says the rest."""

    status = 500
    kind = "server_error"
    default_code = "server_error"


class EngineCrashed(EngineError):  # noqa: N818
    """To compute this request has ended the process that did, again and again: others are not to suffer."""

    default_code = "engine_crashed"

    def __init__(self) -> None:
        super().__init__(
            "the process that computed this request died each time it was tried; it is not tried again"
        )


def error_fields(error: RequestError) -> dict[str, dict[str, str | None]]:
    """The four keys, each bounded."""
    return {
        "error": {
            "message": _clip(error.message, MAX_MESSAGE_CHARS),
            "type": error.kind,
            "param": None if error.param is None else _clip(error.param, MAX_PARAM_CHARS),
            "code": error.code,
        }
    }


def message_error_fields(error: RequestError) -> dict[str, Any]:
    """The same in the shape of Anthropic's Messages API."""
    kind = MESSAGE_KINDS.get(error.http_status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": _clip(error.message, MAX_MESSAGE_CHARS)}}


def error_response(
    error: RequestError, headers: Mapping[str, str] | None = None, *, path: str = ""
) -> Response:
    """In the shape that clients of `path` know."""
    fields = message_error_fields if path.endswith(MESSAGE_PATHS) else error_fields
    return Response(
        json.dumps(fields(error)),
        status_code=error.http_status,
        headers={**error.headers, **(headers or {})},
        media_type="application/json",
    )


def internal_error(request_id: str) -> EngineError:
    """The fixed text for a fault that only the log may describe."""
    return EngineError(f"internal error; the log has it under request id {request_id}")


def from_validation(error: ValidationError | RequestValidationError) -> InvalidRequest:
    """What pydantic found, joined: at most MAX_FAULTS faults, the first one's field as `param`."""
    if isinstance(error, ValidationError):
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        found = [(tuple(fault["loc"]), fault["msg"]) for fault in faults]
    else:
        found = [(tuple(fault["loc"]), str(fault["msg"])) for fault in error.errors()]
    told = [_clip(f"{_path(loc)}: {text}", MAX_FAULT_CHARS) for loc, text in found[:MAX_FAULTS]]
    if len(found) > MAX_FAULTS:
        told.append(f"and {len(found) - MAX_FAULTS} more")
    return InvalidRequest("; ".join(told), param=_path(found[0][0]) if found else None)


def install_handlers(app: FastAPI) -> None:
    """What a route or the framework raises leaves in our shape; ingress/guard.py catches the rest."""
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


async def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError), "registered for RequestError"
    return error_response(error, path=request.scope["path"])


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError), "registered for RequestValidationError"
    return error_response(from_validation(error))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for HTTPException"
    where = f"{request.method} {request.scope['path']}"
    if error.status_code == 404:
        return error_response(NotFound(f"nothing is served at {where}"))
    if error.status_code == 405:
        refused = MethodNotAllowed(f"{where}: this path has no such method")
        return error_response(refused, error.headers, path=request.scope["path"])
    if error.status_code >= 500:
        return error_response(EngineError("internal error"), error.headers)
    return error_response(InvalidRequest(str(error.detail)), error.headers)


def _path(loc: Iterable[str | int]) -> str:
    """("messages", 0, "role") as messages[0].role."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
        if len(path) > MAX_PARAM_CHARS:
            break
    return path


def _clip(text: str, limit: int) -> str:
    """At most `limit` printable ASCII characters: a client's bytes may come back in here."""
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(char if " " <= char <= "~" else "?" for char in shown)
