"""API keys: who may ask, and how much.

A file holds a name, a SHA-256 and limits for each key; the key itself is shown once, when it is made, and
kept nowhere. Knows nothing of HTTP.

Keys are 256 random bits, so a plain hash is enough: there is nothing to guess.

Errors: KeysError.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import secrets
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

PREFIX = "sk-shoal-"
MOST = 10**9
MAX_FILE_BYTES = 4 << 20
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Limit = Annotated[int, Field(ge=1, le=MOST)]


class KeysError(ValueError):
    """The file of keys cannot be used; one line with the remedy."""


class ApiKey(BaseModel):
    """One entry; None: no such limit. The name is the tenant: in logs and errors it stands for the key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_sequences: Limit | None = None


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    keys: tuple[ApiKey, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for what in ("name", "sha256"):
            [(_, count)] = Counter(getattr(key, what) for key in self.keys).most_common(1) or [("", 1)]
            if count > 1:
                raise ValueError(f"two keys have the same {what}")
        return self


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def find(keys: Sequence[ApiKey], given: str) -> ApiKey | None:
    """Whose key `given` is; takes as long whatever it is, and whoever's."""
    digest = digest_of(given)
    found = None
    for key in keys:
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """Raises KeysError. Nothing of what the file holds is in its text."""
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_mode & stat.S_IWOTH:
                raise KeysError(f"{file} can be written by everybody: chmod o-w {file}")
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(
            f"{file} cannot be read ({error.strerror}); make it with `shoal keys add {file} NAME`"
        ) from None
    if len(content) > MAX_FILE_BYTES:
        raise KeysError(f"{file} is over {MAX_FILE_BYTES} bytes: it is no file of keys")
    try:
        return _Keys.model_validate_json(content).keys
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise KeysError(
            f"{file} is no file of keys: {where + ': ' if where else ''}{fault['msg']}; "
            "write it with `shoal keys add` and `shoal keys revoke`"
        ) from None


def add_key(file: Path, name: str, **limits: int | None) -> str:
    """Make a key for `name` and return it; the file is made where there is none. Raises KeysError."""
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = ApiKey(name=name, sha256=digest_of(secret), **limits)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise KeysError(f"{fault['loc'][0]} is {fault['input']!r}: {fault['msg']}") from None
    with _changing(file):
        keys = read_keys(file) if file.exists() else ()
        if any(known.name == name for known in keys):
            raise KeysError(f"{file} has a key of {name!r} already: revoke it first, or choose another name")
        _write(file, [*keys, key])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Raises KeysError."""
    with _changing(file):
        keys = read_keys(file)
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise KeysError(f"{file} has no key of {name!r}; `shoal keys list {file}` shows the names")
        _write(file, kept)


@contextmanager
def _changing(file: Path) -> Iterator[None]:
    """One at a time: of two that add at once, none is lost."""
    try:
        directory = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise KeysError(f"{file.parent} cannot be opened ({error.strerror}): make it first") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _write(file: Path, keys: Sequence[ApiKey]) -> None:
    """All or nothing: who reads meanwhile sees the old file or the new one. For its owner's eyes only."""
    text = _Keys(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True) + "\n"
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
        Path(temporary).replace(file)
    except OSError as error:
        raise KeysError(f"{file} cannot be written ({error.strerror})") from None


class KeyRing:
    """The keys of a file as it is now; while it cannot be used, the last good ones.

    Looks at the file when asked to, at most every LOOK_S.
    """

    LOOK_S = 1.0

    def __init__(self, file: Path, clock: Callable[[], float]) -> None:
        self._file, self.clock = file, clock
        self._seen: tuple[int, ...] | None = None
        self._looked_at_s = clock()
        self.keys: tuple[ApiKey, ...] = ()
        self.fault: str | None = None
        self._read()

    def refresh(self) -> str | None:
        """What has changed, in words for whoever runs the server; None: nothing."""
        now_s = self.clock()
        if now_s - self._looked_at_s < self.LOOK_S:
            return None
        self._looked_at_s = now_s
        return self._read()

    def _read(self) -> str | None:
        before, fault = self._seen, self.fault
        self._seen = self._stamp()
        if self._seen == before and before is not None:
            return None
        try:
            self.keys, self.fault = read_keys(self._file), None
        except KeysError as error:
            self.fault = f"{error}; the {len(self.keys)} keys that were known stay"
            return self.fault if self.fault != fault else None
        return f"{self._file} holds {len(self.keys)} keys now"

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            state = self._file.stat()
        except OSError:
            return None
        return (state.st_mtime_ns, state.st_size, state.st_ino, state.st_mode)
