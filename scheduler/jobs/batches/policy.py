"""What a batch may be, what its lines have to be, and what stands in its result files. No clock, no database.

Source: OpenAI API reference, "Batch" and "The request input object": the shapes and the names of errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from scheduler.jobs.batches.types import (
    MAX_CUSTOM_ID_LETTERS,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    Batch,
    Fault,
    Line,
    Outcome,
)
from scheduler.jobs.errors import BatchRefused
from scheduler.jobs.submission import ENDPOINTS
from scheduler.jobs.types import DAY_MS, MAX_MODEL_LETTERS, Answer, BatchId, JobId, JobState

_WINDOW = re.compile(r"([0-9]{1,4})([hd])")
_UNIT_MS = {"h": 3_600_000, "d": DAY_MS}
LONGEST_WINDOW_MS = 7 * DAY_MS


def window_ms(window: str) -> int:
    """Raises BatchRefused."""
    found = _WINDOW.fullmatch(window)
    length_ms = int(found[1]) * _UNIT_MS[found[2]] if found else 0
    if not 0 < length_ms <= LONGEST_WINDOW_MS:
        raise BatchRefused(f"completion_window is {window[:32]!r}; write hours or days, such as '24h' or '7d', up to 7 days")
    return length_ms


def check_endpoint(endpoint: str) -> None:
    """Raises BatchRefused."""
    if endpoint not in ENDPOINTS:
        raise BatchRefused(f"endpoint {endpoint[:64]!r} is none of a batch; these are: {', '.join(ENDPOINTS)}")


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises BatchRefused."""
    if len(metadata) > MAX_METADATA:
        raise BatchRefused(f"metadata has {len(metadata)} entries, of {MAX_METADATA} at most")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            raise BatchRefused(
                f"metadata {key[:MAX_METADATA_KEY]!r}: keys have up to {MAX_METADATA_KEY} characters, "
                f"values up to {MAX_METADATA_VALUE}"
            )


def read_line(number: int, raw: bytes, endpoint: str) -> Line | Fault:
    """A line of the file: the request that it is, or what is wrong with it. Never shows what it holds."""
    try:
        request: Any = json.loads(raw, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return Fault(number, "invalid_json_line", "this line is not JSON that can be read")
    if not isinstance(request, dict):
        return Fault(number, "invalid_json_line", "this line is JSON, but no object")
    custom_id, body = request.get("custom_id"), request.get("body")
    if not isinstance(custom_id, str) or not custom_id:
        return Fault(number, "missing_required_parameter", "custom_id is missing, or no text")
    if len(custom_id) > MAX_CUSTOM_ID_LETTERS or not custom_id.isprintable():
        return Fault(number, "invalid_custom_id", f"custom_id has to be up to {MAX_CUSTOM_ID_LETTERS} printable characters")
    if request.get("method") != "POST":
        return Fault(number, "invalid_method", "method has to be POST")
    if request.get("url") != endpoint:
        return Fault(number, "invalid_url", f"url has to be {endpoint}, the batch's endpoint")
    if not isinstance(body, dict):
        return Fault(number, "missing_required_parameter", "body is missing, or no object")
    return _read_body(number, custom_id, body)


def _read_body(number: int, custom_id: str, body: dict[str, Any]) -> Line | Fault:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        return Fault(number, "missing_required_parameter", "body.model is missing, or no text")
    if len(model) > MAX_MODEL_LETTERS or not model.isprintable():
        return Fault(number, "invalid_model", f"body.model has to be up to {MAX_MODEL_LETTERS} printable characters")
    if body.get("stream"):
        return Fault(number, "invalid_stream", "answers of a batch cannot be streamed; leave out body.stream")
    return Line(number, custom_id, model, json.dumps(body, separators=(",", ":")).encode())


def belongs_to_output(outcome: Outcome) -> bool:
    """Else to the file of errors."""
    return outcome.state is JobState.SUCCEEDED


def result_line(batch: Batch, outcome: Outcome, answer: Answer | None) -> bytes:
    """A line of a result file, its end included."""
    result: dict[str, Any] = {"id": outcome.job_id, "custom_id": outcome.custom_id, "response": None, "error": None}
    if answer is not None:
        body = _body(answer.body)
        result["response"] = {"status_code": answer.status, "request_id": outcome.job_id, "body": body}
    else:
        code, message = _error(batch, outcome)
        result["error"] = {"code": code, "message": message}
    return json.dumps(result, separators=(",", ":")).encode() + b"\n"


def unmade_line(batch: Batch, line: Line) -> bytes:
    """Of a line that came to be no job, because the batch ended before."""
    job_id = line_job_id(batch.batch_id, line.number)
    return result_line(batch, Outcome(job_id, line.number, line.custom_id, JobState.CANCELLED, 0, "", ""), None)


def line_job_id(batch_id: BatchId, line: int) -> JobId:
    """The same for the same line; in order, of those of one batch."""
    return JobId(f"{batch_id}-{line:06}")


def _body(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode(errors="replace")


def _error(batch: Batch, outcome: Outcome) -> tuple[str, str]:
    if outcome.state is JobState.CANCELLED and batch.at.expired_ms:
        return "batch_expired", "this request could not be done before the completion window ended"
    if outcome.state is JobState.CANCELLED:
        return "batch_cancelled", "this request was cancelled before it was done"
    return outcome.last_outcome.lower() or "failed", outcome.reason


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
