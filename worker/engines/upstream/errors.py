"""What an upstream's failures mean here: HTTP statuses and error objects → our own errors.

The table that decides it. Pure: the time is an argument. An upstream's sentence is passed on only where it tells the caller
what to change in the request; one about the operator's key or account is not the caller's to read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from runtime.errors import Code, ContextExceeded, PenstockError, UpstreamBusy, UpstreamUnavailable
from worker.engines.upstream.json import Malformed, items_of, json_of, object_of

MAX_MESSAGE_CHARACTERS = 300
DEFAULT_RETRY_AFTER_S = 1.0
"""What a caller is told where an upstream that is full does not say."""

_MAX_RETRY_AFTER_S = 3600.0
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")


class UpstreamRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="UPSTREAM_REFUSED"):
    """The upstream cannot take this request; the same one will fail again."""


class UpstreamWithheld(PenstockError, code=Code.INVALID_ARGUMENT, reason="UPSTREAM_WITHHELD"):
    """The upstream's filter kept the answer, or the rest of it, back."""


class UpstreamKeyRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="UPSTREAM_KEY_REFUSED"):
    """The operator's key or account does not open the upstream."""


class UpstreamMoved(PenstockError, code=Code.FAILED_PRECONDITION, reason="UPSTREAM_MOVED"):
    """The upstream points elsewhere; redirects are not followed."""


class UpstreamModelNotFound(PenstockError, code=Code.NOT_FOUND, reason="UPSTREAM_MODEL_NOT_FOUND"):
    """The upstream has no such model, or no such call."""


class UpstreamSilent(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="UPSTREAM_SILENT"):
    """The upstream took longer than it may."""


class UpstreamGarbled(PenstockError, code=Code.INTERNAL, reason="UPSTREAM_GARBLED"):
    """What came is not what the upstream's API says."""


class UpstreamClosed(PenstockError, code=Code.UNAVAILABLE, reason="UPSTREAM_CLOSED"):
    """This copy was unloaded while the upstream answered; another one can be asked."""


BY_STATUS: Mapping[int, type[PenstockError]] = {
    400: UpstreamRefused,
    401: UpstreamKeyRefused,
    402: UpstreamKeyRefused,
    403: UpstreamKeyRefused,
    404: UpstreamModelNotFound,
    405: UpstreamModelNotFound,
    408: UpstreamSilent,
    410: UpstreamModelNotFound,
    413: UpstreamRefused,
    415: UpstreamRefused,
    422: UpstreamRefused,
    425: UpstreamUnavailable,
    429: UpstreamBusy,
    504: UpstreamSilent,
}
"""Others by their hundreds: 3xx UpstreamMoved, 4xx UpstreamRefused, 5xx UpstreamUnavailable."""

_BY_HUNDREDS: Mapping[int, type[PenstockError]] = {3: UpstreamMoved, 4: UpstreamRefused, 5: UpstreamUnavailable}
_KEY_REASONS = ("API_KEY_INVALID", "API_KEY_EXPIRED", "API_KEY_SERVICE_BLOCKED", "insufficient_quota")
"""Google answers 400 to a wrong key and names the matter in the details; OpenAI answers 429 to an account without money."""

_CONTEXT_WORDS = ("context_length_exceeded", "maximum context length", "input token count")
"""OpenAI names the matter; vLLM and Google tell it in their sentences alone."""

_ADVICE: Mapping[type[PenstockError], str] = {
    UpstreamRefused: "change the request",
    ContextExceeded: "shorten the prompt, or ask for a shorter answer",
    UpstreamKeyRefused: "the operator has to look at the key and the account that this model uses",
    UpstreamMoved: "redirects are not followed; the operator has to put the right base_url into upstream.toml",
    UpstreamModelNotFound: "the operator has to look at model and base_url in upstream.toml",
    UpstreamBusy: "back off, then retry",
    UpstreamUnavailable: "retry",
    UpstreamSilent: "retry with more time",
}


@dataclass(frozen=True, slots=True)
class ErrorObject:
    """What an upstream says about its failure; empty where it says nothing that is understood."""

    message: str = ""
    status: int = 0
    """An HTTP status, where the object names one."""
    reasons: tuple[str, ...] = ()
    """Its words for programs."""
    retry_after_s: float | None = None


def error_of(status: int, said: ErrorObject, retry_after_s: float | None = None, secret: str = "") -> PenstockError:
    """The error that an answer with this status means. `secret` never stands in its sentence."""
    kind = BY_STATUS.get(status) or _BY_HUNDREDS.get(status // 100, UpstreamGarbled)
    if any(reason in _KEY_REASONS for reason in said.reasons):
        kind = UpstreamKeyRefused
    elif kind is UpstreamRefused and any(word in said.message or word in said.reasons for word in _CONTEXT_WORDS):
        kind = ContextExceeded
    sentence = f"the upstream answered {status}"
    if kind in (UpstreamRefused, ContextExceeded) and said.message:
        sentence += f": {shown(said.message, secret)}"
    else:
        sentence += f"; {_ADVICE.get(kind, 'report it to whoever runs it')}"
    wait_s = said.retry_after_s if retry_after_s is None else retry_after_s
    if kind is UpstreamBusy and wait_s is None:
        wait_s = DEFAULT_RETRY_AFTER_S
    return kind(sentence, retry_after_s=wait_s if kind in (UpstreamBusy, UpstreamUnavailable) else None)


def error_in_answer(said: ErrorObject, secret: str = "") -> PenstockError:
    """The error that an error object in the midst of an answer means: its own status, else that the upstream failed."""
    if 400 <= said.status < 600:
        return error_of(said.status, said, secret=secret)
    detail = f": {shown(said.message, secret)}" if said.message else ""
    return UpstreamUnavailable(f"the upstream failed while it answered{detail}")


def error_object(raw: bytes) -> ErrorObject:
    """Reads {"error": {…}}, as OpenAI and Google write it; anything else says nothing."""
    try:
        content = json_of(raw)
        if isinstance(content, list):  # Google's, where events were not asked for
            content = items_of(content)[0]
        return described_error(object_of(content).get("error"))
    except (Malformed, IndexError):
        return ErrorObject()


def described_error(value: object) -> ErrorObject:
    """The `error` of an answer. Never raises."""
    if not isinstance(value, dict):
        return ErrorObject()
    error = object_of(value)
    message, code = error.get("message"), error.get("code")
    details = error.get("details")
    found = [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []
    words = (code, *(each.get("reason") for each in found))
    return ErrorObject(
        message=message if isinstance(message, str) else "",
        status=code if isinstance(code, int) and not isinstance(code, bool) else 0,
        reasons=tuple(word for word in words if isinstance(word, str)),
        retry_after_s=next((wait_s for each in found if (wait_s := _delay_s(each.get("retryDelay"))) is not None), None),
    )


def retry_after_s(headers: Mapping[str, str], wall_s: float) -> float | None:
    """What Retry-After says, in seconds or as a date; OpenAI's finer `retry-after-ms` goes first. Source: RFC 9110, 10.2.3."""
    fine = _seconds(headers.get("retry-after-ms", ""))
    if fine is not None:
        return fine / 1000
    text = headers.get("retry-after", "")
    seconds = _seconds(text)
    if seconds is not None or not text:
        return seconds
    try:
        when = parsedate_to_datetime(text)
        return min(max(0.0, when.timestamp() - wall_s), _MAX_RETRY_AFTER_S)
    except (ValueError, TypeError, OverflowError):
        return None


def shown(message: str, secret: str = "") -> str:
    """An upstream's sentence as it may be passed on: short, printable, without the key."""
    if secret:
        message = message.replace(secret, "…")
    cut = message[:MAX_MESSAGE_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in cut).strip()


def _seconds(text: str) -> float | None:
    """A decimal number; nan and infinity are none."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text.strip()):
        return None
    return min(float(text), _MAX_RETRY_AFTER_S)


def _delay_s(value: object) -> float | None:
    """google.protobuf.Duration in JSON, as in google.rpc.RetryInfo."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return min(float(match[1]), _MAX_RETRY_AFTER_S) if match else None
