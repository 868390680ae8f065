"""What `penstock requests …` does, at the gateway, with the caller's key: its tenant's requests as tables, and their sums."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from penstock.gateway.v1 import usage_pb2, usage_pb2_grpc
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import InvalidArgument, NotFound

_PAGE = 500
_DAY_S = 86_400
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": _DAY_S}
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


@dataclass(frozen=True, slots=True)
class RequestsQuestion:
    """Empty and 0 = any."""

    model: str = ""
    code: str = ""
    key_id: str = ""
    failed: bool = False
    since_s: float = 0.0
    """So long ago at most."""
    limit: int = 50


async def show_requests(profile: Profile, asked: RequestsQuestion) -> None:
    """A row per request, newest first."""
    since_ms = int((time.time() - asked.since_s) * 1000) if asked.since_s else 0
    request = usage_pb2.ListRequestsRequest(
        model=asked.model, code=asked.code, key_id=asked.key_id, failed=asked.failed, since_ms=since_ms
    )
    found = await _requests(profile, request, asked.limit)
    rows = table("ended (UTC)", "request", "method", "model", "worker", "outcome", "took", "tokens", "remarks")
    for each in found:
        style = "" if each.code == "OK" else "yellow" if each.code in ("CANCELLED", "RESOURCE_EXHAUSTED") else "red"
        cells = (_at(each.ended_at_ms), each.request_id, each.method, _model(each), each.worker_id, _outcome(each))
        rows.add_row(*map(Text, (*cells, took(each.elapsed_ms), _tokens(each), remarks(each))), style=style)
    console().print(rows if found else "there are no such requests")


async def show_request(profile: Profile, request_id: str) -> None:
    """All that is known of it. Raises NotFound."""
    found = await _requests(profile, usage_pb2.ListRequestsRequest(request_id=request_id), 20)
    if not found:
        raise NotFound(f"no request {request_id!r} in the log: not this tenant's, not written yet, or forgotten")
    for each in found:
        rows = table("", "", title=f"request {each.request_id}")
        for name, value in _details(each):
            if value:
                rows.add_row(name, Text(value))
        console().print(rows)


async def show_usage(profile: Profile, days: int, model: str, key_id: str) -> None:
    """A row per day, model and key, and what it comes to in all."""
    today_s = int(time.time()) // _DAY_S * _DAY_S
    request = usage_pb2.GetUsageRequest(since_ms=(today_s - (days - 1) * _DAY_S) * 1000, model=model, key_id=key_id)
    async with profile.gateway_channel() as gateway:
        answer = await usage_pb2_grpc.UsageServiceStub(gateway).GetUsage(request, metadata=profile.metadata)
    headings = ("requests", "failed", "from cache", "prompt tokens", "answer tokens", "received", "sent")
    rows = table("day (UTC)", "model", "key", *headings)
    for column in rows.columns[3:]:
        column.justify = "right"
    for each in answer.usage:
        day = f"{datetime.fromtimestamp(each.day_ms / 1000, UTC):%Y-%m-%d}"
        rows.add_row(*map(Text, (day, each.model or "(none)", each.key_id, *_sums([each]))))
    if len(answer.usage) > 1:
        rows.add_section()
        rows.add_row("in all", "", "", *_sums(answer.usage), style="bold")
    console().print(rows if answer.usage else "nothing was asked in this time")
    if answer.truncated:
        console().print("there is more than can be shown; ask for fewer --days, one --model or one --key-id", soft_wrap=True)


def seconds(words: str) -> float:
    """Of 90s, 15m, 1h or 7d; empty: 0. Raises InvalidArgument."""
    if not words:
        return 0.0
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", words.strip())
    if match is None:
        raise InvalidArgument(f"--since is {words!r}; say it like 90s, 15m, 1h or 7d")
    return float(match[1]) * _UNITS_S[match[2]]


def took(elapsed_ms: float) -> str:
    """A duration as people read it."""
    if elapsed_ms < 10:
        return f"{elapsed_ms:.1f} ms"
    return f"{elapsed_ms:.0f} ms" if elapsed_ms < 10_000 else f"{elapsed_ms / 1000:.1f} s"


def size(count: int) -> str:
    """Bytes as people read them."""
    return next((f"{count / least:.1f} {unit}" for least, unit in _SIZES if count >= least), f"{count} B")


def remarks(request: usage_pb2.LoggedRequest) -> str:
    """What did not go the plain way."""
    said = [
        f"cache {request.cache}" if request.cache else "",
        f"instead of {request.fell_back_from}" if request.fell_back_from else "",
        f"{request.attempts} workers" if request.attempts > 1 else "",
        "hedged" if request.hedged else "",
        f"moved {request.migrations}×" if request.migrations else "",
    ]
    return ", ".join(filter(None, said))


async def _requests(profile: Profile, asked: usage_pb2.ListRequestsRequest, limit: int) -> list[usage_pb2.LoggedRequest]:
    found: list[usage_pb2.LoggedRequest] = []
    async with profile.gateway_channel() as gateway:
        stub = usage_pb2_grpc.UsageServiceStub(gateway)
        while len(found) < limit:
            asked.page_size = min(limit - len(found), _PAGE)
            page = await stub.ListRequests(asked, metadata=profile.metadata)
            found += page.requests
            asked.page_token = page.next_page_token
            if not page.next_page_token:
                break
    return found


def _details(request: usage_pb2.LoggedRequest) -> Sequence[tuple[str, str]]:
    first = took(request.first_answer_ms) if request.HasField("first_answer_ms") else ""
    return (
        ("ended (UTC)", _at(request.ended_at_ms)),
        ("outcome", _outcome(request)),
        ("method", request.method + (", streamed" if request.streamed else "")),
        ("asked for", request.asked_model),
        ("answered by", _answerer(request)),
        ("worker", request.worker_id),
        ("took", took(request.elapsed_ms)),
        ("first answer after", first),
        ("tokens", _tokens(request)),
        ("bytes", f"{size(request.request_bytes)} in, {size(request.answer_bytes)} out"),
        ("remarks", remarks(request)),
        ("key", request.key_id),
        ("served in", f"{request.region}, by gateway {request.gateway}, process {request.process}"),
        ("trace", request.trace_id),
        ("request", request.request_body),
        ("answer", request.answer_body),
    )


def _sums(usage: Sequence[usage_pb2.Usage]) -> tuple[str, ...]:
    counts = ("requests", "errors", "cache_hits", "prompt_tokens", "completion_tokens")
    numbers = [f"{sum(getattr(each, name) for each in usage):,}" for name in counts]
    return (*numbers, size(sum(each.request_bytes for each in usage)), size(sum(each.answer_bytes for each in usage)))


def _at(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def _model(request: usage_pb2.LoggedRequest) -> str:
    answerer = _answerer(request)
    return answerer if request.asked_model in ("", request.model) else f"{request.asked_model} → {answerer}"


def _answerer(request: usage_pb2.LoggedRequest) -> str:
    return f"{request.model}/{request.version}" if request.version else request.model


def _outcome(request: usage_pb2.LoggedRequest) -> str:
    return request.code if request.reason in ("", request.code) else f"{request.code} ({request.reason})"


def _tokens(request: usage_pb2.LoggedRequest) -> str:
    counts = request.prompt_tokens, request.completion_tokens
    return f"{counts[0]:,} + {counts[1]:,}" if any(counts) else ""
