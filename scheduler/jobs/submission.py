"""Whether what was submitted can be a job. Says what was seen and what is allowed; decides nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from scheduler.jobs.errors import JobRefused
from scheduler.jobs.types import (
    LONGEST_DELAY_MS,
    LONGEST_KEEP_MS,
    MAX_ATTEMPTS,
    MAX_CALL_BYTES,
    MAX_KEY_LETTERS,
    MAX_MODEL_LETTERS,
    MAX_PRIORITY,
    MiB,
    Owner,
    Submission,
)

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
_MAX_MODELS = 1_000


def checked(asked: Submission, now_ms: int) -> Submission:
    """As it is kept. Raises JobRefused."""
    check_owner(asked.owner)
    if (size := len(asked.call.body)) > MAX_CALL_BYTES:
        raise JobRefused(f"the call has {size} bytes, of {MAX_CALL_BYTES // MiB} MiB at most; make several jobs of it")
    if asked.call.path and asked.call.path not in ENDPOINTS:
        raise JobRefused(f"path {asked.call.path[:64]!r} is none that a job can call; these are: {', '.join(ENDPOINTS)}")
    _check_text("model", asked.model, MAX_MODEL_LETTERS)
    if not asked.model:
        raise JobRefused("the call names no model")
    _check_text("idempotency_key", asked.idempotency_key, MAX_KEY_LETTERS)
    _check_number("priority", asked.priority, MAX_PRIORITY)
    _check_number("max_attempts", asked.max_attempts, MAX_ATTEMPTS)
    _check_number("keep_s", asked.keep_ms // 1_000, LONGEST_KEEP_MS // 1_000)
    _check_times(asked, now_ms)
    return replace(asked, due_at_ms=max(asked.due_at_ms, now_ms))


def check_owner(owner: Owner) -> None:
    if not owner.tenant:
        raise JobRefused("owner.tenant is empty; name the tenant on whose behalf this is to be done")
    _check_text("owner.tenant", owner.tenant, 63)
    _check_text("owner.key_id", owner.key_id, 64)
    if len(owner.allowed_models) > _MAX_MODELS:
        raise JobRefused(f"owner.allowed_models has {len(owner.allowed_models)} names, of {_MAX_MODELS} at most")
    for model in owner.allowed_models:
        _check_text("owner.allowed_models", model, MAX_MODEL_LETTERS)


def http_model(body: bytes) -> str:
    """The model that a JSON body names. Raises JobRefused."""
    try:
        parsed: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise JobRefused(f"the call's body is not JSON that can be read: {_why(error)}") from error
    if not isinstance(parsed, dict):
        raise JobRefused("the call's body is JSON, but no object")
    if parsed.get("stream"):
        raise JobRefused("a job cannot stream its answer; leave out `stream`")
    model = parsed.get("model")
    if not isinstance(model, str) or not model:
        raise JobRefused("the call's body names no `model`")
    return model


def _why(error: Exception) -> str:
    # Not the decoder's whole words: those of some errors hold a part of the body.
    return f"line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__


def _check_text(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise JobRefused(f"{name} has {len(text)} characters, of {most} at most")
    if text and not text.isprintable():
        raise JobRefused(f"{name} {text[:64]!r} has characters that cannot be printed")


def _check_number(name: str, number: int, most: int) -> None:
    if not 0 <= number <= most:
        raise JobRefused(f"{name} is {number}, of {most} at most; 0 stands for the default")


def _check_times(asked: Submission, now_ms: int) -> None:
    latest_ms = now_ms + LONGEST_DELAY_MS
    if not 0 <= asked.due_at_ms <= latest_ms:
        raise JobRefused(
            f"due_at_ms is {asked.due_at_ms}, of {latest_ms} (a year from now) at most; it is milliseconds since 1970"
        )
    if asked.expires_at_ms and not max(now_ms, asked.due_at_ms) < asked.expires_at_ms <= latest_ms + LONGEST_DELAY_MS:
        raise JobRefused(
            f"expires_at_ms is {asked.expires_at_ms}, and now is {now_ms}: it has to lie after now and after due_at_ms, "
            "and within two years; it is milliseconds since 1970"
        )
