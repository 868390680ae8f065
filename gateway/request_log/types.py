"""What the request log keeps, how much of it waits, and what may be asked of it. Values only."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from runtime.errors import Code, PenstockError

DAY_MS = 86_400_000
SUMS = ("requests", "errors", "cache_hits", "prompt_tokens", "completion_tokens", "request_bytes", "answer_bytes")
"""What is added up of a day."""

MOST_SUMS = 5_000
"""Given at once."""

BATCH_ROWS = 100
"""In one transaction, and so without a break on the event loop: 2 ms."""


class EntriesRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="LOG_ENTRIES_REFUSED"):
    """The database works, and will not have these entries as they are."""


class LogNotKept(PenstockError, code=Code.FAILED_PRECONDITION, reason="REQUEST_LOG_OFF"):
    """Nobody writes down what became of requests."""


class KeptBodies(enum.Enum):
    """Whether the words of requests and answers are kept, of those that are JSON."""

    OFF = "off"
    REDACTED = "redacted"
    """Without secrets, addresses and long numbers; shortened."""


class Drop(enum.Enum):
    """Why a request is not in the log."""

    QUEUE_FULL = "queue_full"
    """As many wait as may: the database is slow, or away."""
    BYTES_FULL = "bytes_full"
    """Likewise, by what they take in memory."""
    STRANGER = "stranger"
    """Its caller was not let in, and many such came in the same second: nobody without a key fills the database."""
    REFUSED = "refused"
    """The database would not have it."""
    SHUTDOWN = "shutdown"
    """The gateway ended while it waited."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How the log is kept."""

    queue_rows: int = 10_000
    queue_bytes: int = 64 * 1024 * 1024
    strangers_per_s: int = 20
    """Of callers who were not let in."""
    batch_rows: int = BATCH_ROWS
    every_s: float = 0.5
    """A request is in the log so much later at most, where the database answers."""
    write_s: float = 10.0
    """What one transaction may take."""
    flush_s: float = 2.0
    """What is given to the last ones when the gateway ends."""
    retention_ms: int = 30 * DAY_MS
    sums_ms: int = 400 * DAY_MS
    bodies: KeptBodies = KeptBodies.OFF


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a log's requests were served."""

    region: str = ""
    gateway: str = ""
    process: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One request. The fields are the table's columns, in their order."""

    at_ms: int
    """When it ended."""
    row_id: int
    request_id: str
    tenant: str
    key_id: str
    method: str
    asked: str
    model: str
    version: str
    worker_id: str
    code: str
    reason: str
    streamed: bool
    attempts: int
    hedged: bool
    migrations: int
    fell_back: str
    cache: str
    prompt_tokens: int
    completion_tokens: int
    request_bytes: int
    answer_bytes: int
    elapsed_ms: float
    first_answer_ms: float | None
    region: str
    gateway: str
    process: int
    trace_id: str
    request_body: str | None = None
    answer_body: str | None = None

    @property
    def day_ms(self) -> int:
        """When its day began, UTC."""
        return self.at_ms - self.at_ms % DAY_MS

    @property
    def answered_by(self) -> str:
        """The model it counts for; empty where none was found: anybody may name any, and sums of those would have no end."""
        return self.model if self.worker_id or self.code == "OK" else ""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Of an entry in the log."""

    at_ms: int
    row_id: int


@dataclass(frozen=True, slots=True)
class Question:
    """Which of a tenant's requests; empty and 0: it does not matter."""

    tenant: str
    model: str = ""
    code: str = ""
    key_id: str = ""
    request_id: str = ""
    failed: bool = False
    since_ms: int = 0
    until_ms: int = 0
    limit: int = 100
    before: Place | None = None
    """Only older ones."""


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first."""

    entries: tuple[Entry, ...]
    rest: Place | None = None
    """Where there are more: after this one."""


@dataclass(frozen=True, slots=True)
class UsageQuestion:
    """Of which days, keys and models; empty: all."""

    tenant: str
    since_ms: int
    until_ms: int
    model: str = ""
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class UsageKey:
    tenant: str
    day_ms: int
    key_id: str
    model: str


@dataclass(frozen=True, slots=True)
class UsageSum:
    key: UsageKey
    sums: tuple[int, ...]
    """As SUMS names them."""
