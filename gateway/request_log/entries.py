"""From what was noted of a request to its entry in the log, and from entries to the sums of their days.

Pure. Whatever was noted becomes an entry that any database takes: text without what it cannot hold, numbers that fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import add
from typing import Any

from gateway.admission import KeyFacts
from gateway.exchange import OK, Said
from gateway.request_log.log import Noted
from gateway.request_log.redaction import redacted
from gateway.request_log.types import Entry, Origin, UsageKey, UsageSum

_MOST, _MOST_SMALL = 2**40, 2**31 - 1
"""Far beyond what a request can come to, and sums of a day of them still fit."""


def entry_of(noted: Noted, origin: Origin) -> Entry:
    """With its words redacted, which takes milliseconds for long ones: not for the event loop."""
    values: tuple[Any, ...] = noted
    _, ended_s, row_id, request_id, key, traceparent, *about, elapsed_s, first_s, said = values
    method, asked, model, version, worker_id, code, reason, streamed, attempts, hedged, migrations, fell_back, *rest = about
    cache, prompt_tokens, completion_tokens, request_bytes, answer_bytes = rest
    facts: KeyFacts | None = key
    words: Said | None = said
    return Entry(
        at_ms=int(ended_s * 1000),
        row_id=row_id,
        request_id=_text(request_id, 128),
        tenant="" if facts is None else _text(facts.tenant, 63),
        key_id="" if facts is None else _text(facts.key_id, 64),
        method=_text(method, 64),
        asked=_text(asked, 256),
        model=_text(model, 256),
        version=_text(version, 64),
        worker_id=_text(worker_id, 64),
        code=_text(code, 32),
        reason=_text(reason, 64),
        streamed=streamed,
        attempts=_number(attempts, _MOST_SMALL),
        hedged=hedged,
        migrations=_number(migrations, _MOST_SMALL),
        fell_back=_text(fell_back, 256),
        cache=_text(cache, 8),
        prompt_tokens=_number(prompt_tokens),
        completion_tokens=_number(completion_tokens),
        request_bytes=_number(request_bytes),
        answer_bytes=_number(answer_bytes),
        elapsed_ms=elapsed_s * 1000,
        first_answer_ms=None if first_s is None else first_s * 1000,
        region=origin.region,
        gateway=origin.gateway,
        process=origin.process,
        trace_id=trace_id_of(traceparent),
        request_body=None if words is None or not words.asked else redacted(words.asked),
        answer_body=None if words is None or not words.answered else redacted(words.answered),
    )


def trace_id_of(traceparent: str) -> str:
    """Empty where there is none. Source: W3C Trace Context, section 3.2."""
    parts = traceparent.split("-")
    known = len(parts) >= 4 and len(parts[1]) == 32 and all(each in "0123456789abcdef" for each in parts[1])
    return parts[1] if known else ""


def sums_of(entries: Iterable[Entry]) -> list[UsageSum]:
    """What they add to their days, in the order of the keys: all who write lock them in the same order."""
    sums: dict[UsageKey, tuple[int, ...]] = {}
    for entry in entries:
        key = UsageKey(entry.tenant, entry.day_ms, entry.key_id, entry.answered_by)
        sums[key] = tuple(map(add, sums.get(key, (0,) * 7), _counts(entry)))
    in_order = sorted(sums, key=lambda key: (key.tenant, key.day_ms, key.key_id, key.model))
    return [UsageSum(key, sums[key]) for key in in_order]


def _counts(entry: Entry) -> tuple[int, ...]:
    return (
        1,
        int(entry.code != OK),
        int(entry.cache == "hit"),
        entry.prompt_tokens,
        entry.completion_tokens,
        entry.request_bytes,
        entry.answer_bytes,
    )


def _text(value: str, most: int) -> str:
    """PostgreSQL holds no NUL, and neither database half a surrogate pair."""
    if not value.isprintable():
        value = "".join(each if each.isprintable() else "�" for each in value[:most])
    return value if len(value) <= most else value[:most]


def _number(value: int, most: int = _MOST) -> int:
    return min(max(value, 0), most)
