"""/v1/batches: many requests in one file, done when there is room for them.

Decides what a request for a batch has to be, and how a batch is shown. Keeps and drives nothing: a BatchStore does. Source:
OpenAI's API reference, "Batch".
"""

from __future__ import annotations

import json

from gateway.callers import Caller
from gateway.jobs.types import JobOwner
from gateway.openai.answers import PATHS
from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, body_of, text_of
from gateway.openai.files import check_limit, listed, tenant_of
from gateway.openai.stored import BatchAsked, BatchStore, Page, Stage, StoredBatch

MAX_LISTED = 100
_LISTED = 20
_TAKEN = frozenset({"input_file_id", "endpoint", "completion_window", "metadata"})
_MAX_ID_CHARACTERS = 128
_MAX_PAIRS, _MAX_KEY_CHARACTERS, _MAX_VALUE_CHARACTERS = 16, 64, 512


class Batches:
    """Batches as JSON, for one tenant at a time."""

    def __init__(self, store: BatchStore) -> None:
        self._store = store

    async def create(self, caller: Caller, body: bytes) -> bytes:
        caller.key.require_infer()
        asked = batch_asked(body)
        return _rendered(await self._store.create(owner_of(caller), asked))

    async def all(self, caller: Caller, *, limit: int = 0, after: str = "") -> bytes:
        check_limit(limit, MAX_LISTED)
        page = await self._store.batches(tenant_of(caller), limit=limit or _LISTED, after=after)
        return listed(Page([_shown(batch) for batch in page.items], page.has_more))

    async def one(self, caller: Caller, batch_id: str) -> bytes:
        return _rendered(await self._store.batch(tenant_of(caller), batch_id))

    async def cancel(self, caller: Caller, batch_id: str) -> bytes:
        caller.key.require_infer()
        return _rendered(await self._store.cancel(tenant_of(caller), batch_id))


def owner_of(caller: Caller) -> JobOwner:
    """On whose behalf work is done later, with the rights that its key has now."""
    return JobOwner(tenant_of(caller), caller.key.key_id, caller.key.allowed_models)


def batch_asked(data: bytes) -> BatchAsked:
    """Raises RequestRefused, BodyTooLarge."""
    body = body_of(data)
    body.only(_TAKEN, {"output_expires_after": ()})
    endpoint = text_of(body.required("endpoint"), "endpoint")
    if endpoint not in PATHS:
        raise RequestRefused(f"'endpoint' is {endpoint[:80]!r}; known here: {', '.join(PATHS)}", param="endpoint")
    input_file_id = _short(body, "input_file_id")
    return BatchAsked(input_file_id, endpoint, _short(body, "completion_window"), _metadata(body))


def _short(body: Fields, name: str) -> str:
    text = text_of(body.required(name), name)
    if not 0 < len(text) <= _MAX_ID_CHARACTERS:
        raise RequestRefused(f"{name!r} has {len(text)} characters; it takes 1 to {_MAX_ID_CHARACTERS}", param=name)
    return text


def _metadata(body: Fields) -> dict[str, str]:
    fields = body.fields("metadata")
    if fields is None:
        return {}
    names = fields.names
    if len(names) > _MAX_PAIRS:
        raise RequestRefused(f"'metadata' has {len(names)} pairs; at most {_MAX_PAIRS} are taken", param="metadata")
    pairs: dict[str, str] = {}
    for name in names:
        value = text_of(fields.required(name), fields.path(name)[:_MAX_ID_CHARACTERS])
        if len(text_of(name, "metadata")) > _MAX_KEY_CHARACTERS or len(value) > _MAX_VALUE_CHARACTERS:
            raise RequestRefused(
                f"'metadata' takes names of up to {_MAX_KEY_CHARACTERS} and values of up to {_MAX_VALUE_CHARACTERS} characters;"
                f" {name[:_MAX_KEY_CHARACTERS]!r} has {len(name)} and {len(value)}",
                param="metadata",
            )
        pairs[name] = value
    return pairs


def _shown(batch: StoredBatch) -> dict[str, object]:
    times = {stage.value: batch.times_ms.get(stage, 0) // 1000 or None for stage in Stage}
    return {
        "id": batch.batch_id,
        "object": "batch",
        "endpoint": batch.asked.endpoint,
        "errors": _faults(batch),
        "input_file_id": batch.asked.input_file_id,
        "completion_window": batch.asked.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id or None,
        "error_file_id": batch.error_file_id or None,
        **times,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": dict(batch.asked.metadata) or None,
    }


def _faults(batch: StoredBatch) -> dict[str, object] | None:
    if not batch.faults:
        return None
    data = [{"code": fault.code, "line": fault.line or None, "message": fault.message, "param": None} for fault in batch.faults]
    return {"object": "list", "data": data}


def _rendered(batch: StoredBatch) -> bytes:
    return json.dumps(_shown(batch)).encode()
