"""UsageService's messages from and to the request log's values."""

from __future__ import annotations

from penstock.gateway.v1 import usage_pb2 as pb

from gateway.request_log.types import DAY_MS, MOST_SUMS, SUMS, Entry, Page, Place, Question, UsageQuestion, UsageSum
from runtime.errors import InvalidArgument

_PAGE, _MOST = 100, 1_000
_USAGE_DAYS = 30
_NEVER_MS = 2**62
_SAME = (
    "request_id",
    "key_id",
    "method",
    "model",
    "version",
    "worker_id",
    "code",
    "reason",
    "streamed",
    "attempts",
    "hedged",
    "migrations",
    "cache",
    "prompt_tokens",
    "completion_tokens",
    "request_bytes",
    "answer_bytes",
    "elapsed_ms",
    "first_answer_ms",
    "region",
    "gateway",
    "process",
    "trace_id",
    "request_body",
    "answer_body",
)


def question_of(request: pb.ListRequestsRequest, tenant: str) -> Question:
    """Raises InvalidArgument."""
    if request.page_size > _MOST:
        raise InvalidArgument(f"page_size is {request.page_size}; at most {_MOST} requests are given at once")
    return Question(
        tenant=tenant,
        model=_searched(request.model, "model"),
        code=_searched(request.code, "code").upper(),
        key_id=_searched(request.key_id, "key_id"),
        request_id=_searched(request.request_id, "request_id"),
        failed=request.failed,
        since_ms=min(request.since_ms, _NEVER_MS),
        until_ms=min(request.until_ms, _NEVER_MS),
        limit=request.page_size or _PAGE,
        before=_place(request.page_token) if request.page_token else None,
    )


def page_message(page: Page) -> pb.ListRequestsResponse:
    rest = page.rest
    token = "" if rest is None else f"{rest.at_ms:x}.{rest.row_id:x}"
    return pb.ListRequestsResponse(requests=map(_message, page.entries), next_page_token=token)


def usage_question_of(request: pb.GetUsageRequest, tenant: str, now_ms: int) -> UsageQuestion:
    """Raises InvalidArgument."""
    since_ms = request.since_ms or now_ms - now_ms % DAY_MS - (_USAGE_DAYS - 1) * DAY_MS
    return UsageQuestion(
        tenant,
        min(since_ms, _NEVER_MS),
        min(request.until_ms or now_ms, _NEVER_MS),
        _searched(request.model, "model"),
        _searched(request.key_id, "key_id"),
    )


def usage_message(sums: list[UsageSum]) -> pb.GetUsageResponse:
    usage = [
        pb.Usage(
            day_ms=each.key.day_ms, key_id=each.key.key_id, model=each.key.model, **dict(zip(SUMS, each.sums, strict=True))
        )
        for each in sums[:MOST_SUMS]
    ]
    return pb.GetUsageResponse(usage=usage, truncated=len(sums) > MOST_SUMS)


def _message(entry: Entry) -> pb.LoggedRequest:
    same = {name: value for name in _SAME if (value := getattr(entry, name)) is not None}
    return pb.LoggedRequest(ended_at_ms=entry.at_ms, asked_model=entry.asked, fell_back_from=entry.fell_back, **same)


def _searched(value: str, field: str) -> str:
    """Raises InvalidArgument on what cannot be in the log, nor be asked of a database."""
    if len(value) > 256 or not value.isprintable():
        raise InvalidArgument(f"{field} is {value[:80]!r}; it takes up to 256 printable characters")
    return value


def _place(token: str) -> Place:
    """Raises InvalidArgument."""
    parts = token.split(".")
    try:
        place = Place(*(int(part, 16) for part in parts if len(part) <= 16))
    except (ValueError, TypeError):
        place = None
    if place is None or not 0 <= place.at_ms < _NEVER_MS * 2 or not 0 <= place.row_id < _NEVER_MS * 2:
        raise InvalidArgument("page_token is none that was given with an earlier page; leave it out to begin anew")
    return place
