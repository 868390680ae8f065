"""`upstream.toml`: what a model behind somebody's API is called there, where it is, and how long it may take.

A codec, one way. It is one of the model's signed files, so it holds no secret: `key` is the name of one.

    api = "openai"                            # or "gemini"
    base_url = "https://api.openai.com/v1"
    model = "gpt-4o-mini"
    key = "openai"                            # optional: a name in the worker's file of keys

Decides what the file may say. Whether the host may be called is `worker.remote.upstream_keys`' question.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from worker.engine import ModelRefused

FILE = "upstream.toml"
APIS = ("openai", "gemini")
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
DEFAULT_CONCURRENCY = 32
_MAX_FILE_BYTES = 64 * 1024
_MAX_TEXT = 512
_MAX_HEADERS = 32
_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_KEPT_HEADERS = frozenset(
    {
        *("authorization", "proxy-authorization", "x-goog-api-key", "api-key", "x-api-key", "cookie"),
        *("host", "connection", "content-length", "content-type", "transfer-encoding", "te", "trailer", "upgrade"),
        *("accept", "accept-encoding", "expect", "keep-alive", "openai-organization"),
    }
)
"""Written by the engine, or secrets."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each part of a call may take."""

    connect_s: float = 5.0
    first_token_s: float = 60.0
    """From the request to the first event of the answer; of embeddings, to the whole answer."""
    between_tokens_s: float = 30.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    api: str
    base_url: str
    """Without a slash at its end."""
    model: str
    """Its name there."""
    key: str = ""
    """Name of a secret; empty = none is sent."""
    organisation: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    patience: Patience = field(default_factory=Patience)
    max_concurrency: int = DEFAULT_CONCURRENCY
    max_retries: int = 0
    """Here, on top of those that the mesh makes on other workers."""
    check: bool = False
    """Ask the upstream for its models when the copy is opened."""
    include_usage: bool = True
    """Ask OpenAI-style streams for their tokens; some old servers refuse the field."""
    token_limit: str = TOKEN_LIMITS[0]
    """What OpenAI-style chats call the limit of tokens."""
    always_stream: bool = False
    """Have answers streamed also where the caller waits for the whole: proxies cut connections on which nothing comes."""
    dimensions: int = 0
    """Width of embeddings to ask for; 0 = the model's own."""


_FIELDS = frozenset(
    {
        *("api", "base_url", "model", "key", "organisation", "headers", "timeouts", "max_concurrency", "max_retries"),
        *("check", "include_usage", "token_limit", "dimensions", "always_stream"),
    }
)
_TIMEOUTS = frozenset({"connect_s", "first_token_s", "between_tokens_s", "total_s"})


def read_config(folder: Path) -> UpstreamConfig:
    """Raises ModelRefused with the field at fault, what it is and what it may be."""
    file = folder / FILE
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelRefused(f"an upstream model needs a file {FILE}; it cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_FILE_BYTES:
        raise ModelRefused(f"{FILE} has more than {_MAX_FILE_BYTES} bytes")
    try:
        content = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ModelRefused(f"{FILE} is no TOML: {error}") from error
    return _Reader(content, "").config()


class _Reader:
    """One table of the file."""

    def __init__(self, content: Mapping[str, object], prefix: str) -> None:
        self._content, self._prefix = content, prefix

    def config(self) -> UpstreamConfig:
        self._only(_FIELDS)
        model = self._text("model")
        if not _MODEL.fullmatch(model) or ".." in model:
            raise self._refused("model", model, "letters, digits and . _ : / @ + -")
        return UpstreamConfig(
            api=self._one_of("api", APIS),
            base_url=self._text("base_url").rstrip("/"),
            model=model,
            key=self._text("key", ""),
            organisation=self._header_value("organisation", self._text("organisation", "")),
            headers=self._headers(),
            patience=self._patience(),
            max_concurrency=self._whole("max_concurrency", DEFAULT_CONCURRENCY, 1, 4096),
            max_retries=self._whole("max_retries", 0, 0, 10),
            check=self._flag("check", default=False),
            include_usage=self._flag("include_usage", default=True),
            token_limit=self._one_of("token_limit", TOKEN_LIMITS, TOKEN_LIMITS[0]),
            always_stream=self._flag("always_stream", default=False),
            dimensions=self._whole("dimensions", 0, 0, 65536),
        )

    def _patience(self) -> Patience:
        table = self._table("timeouts")
        table._only(_TIMEOUTS)
        default = Patience()
        return Patience(
            connect_s=table._seconds("connect_s", default.connect_s),
            first_token_s=table._seconds("first_token_s", default.first_token_s),
            between_tokens_s=table._seconds("between_tokens_s", default.between_tokens_s),
            total_s=table._seconds("total_s", default.total_s),
        )

    def _headers(self) -> tuple[tuple[str, str], ...]:
        table = self._table("headers")
        if len(table._content) > _MAX_HEADERS:
            raise table._refused("*", len(table._content), f"up to {_MAX_HEADERS} headers")
        return tuple((name, table._header(name)) for name in table._content)

    def _header(self, name: str) -> str:
        if not _HEADER.fullmatch(name):
            raise self._refused(name, name, "a header's name")
        if name.lower() in _KEPT_HEADERS:
            raise ModelRefused(
                f"{FILE}: {self._prefix}{name} is not set here; the engine writes it, or it is a secret: name a `key` instead"
            )
        return self._header_value(name, self._text(name, ""))

    def _header_value(self, name: str, value: str) -> str:
        if not value.isascii() or not (value.isprintable() or not value):
            raise self._refused(name, value, "printable ASCII")
        return value

    def _only(self, fields: AbstractSet[str]) -> None:
        if unknown := sorted(set(self._content) - fields):
            raise ModelRefused(
                f"{FILE}: {self._prefix}{unknown[0][:80]} is not a field; the fields are: {', '.join(sorted(fields))}"
            )

    def _text(self, name: str, default: str | None = None) -> str:
        value = self._content.get(name, default)
        if not isinstance(value, str) or len(value) > _MAX_TEXT or (default is None and not value):
            raise self._refused(name, value, f"a string of up to {_MAX_TEXT} characters")
        return value

    def _one_of(self, name: str, known: tuple[str, ...], default: str | None = None) -> str:
        value = self._text(name, default)
        if value not in known:
            raise self._refused(name, value, " or ".join(known))
        return value

    def _flag(self, name: str, *, default: bool) -> bool:
        value = self._content.get(name, default)
        if not isinstance(value, bool):
            raise self._refused(name, value, "true or false")
        return value

    def _whole(self, name: str, default: int, at_least: int, at_most: int) -> int:
        value = self._content.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise self._refused(name, value, f"a whole number from {at_least} to {at_most}")
        return value

    def _seconds(self, name: str, default: float) -> float:
        value = self._content.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0.001 <= value <= 86_400:
            raise self._refused(name, value, "seconds from 0.001 to 86400")
        return float(value)

    def _table(self, name: str) -> _Reader:
        value = self._content.get(name, {})
        if not isinstance(value, dict):
            raise self._refused(name, value, "a table")
        return _Reader(value, f"{name}.")

    def _refused(self, name: str, value: object, expected: str) -> ModelRefused:
        return ModelRefused(f"{FILE}: {self._prefix}{name} is {value!r:.120}; {expected} is expected")
