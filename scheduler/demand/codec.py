"""ReportDemandRequest to nouns. Decides what is malformed, nothing else."""

from __future__ import annotations

import math
import re

from penstock.scheduler.v1 import scheduler_pb2

from placement.copies.demand import Asked
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, ModelVersion, Region, WorkerId
from scheduler.demand.types import Report, SeenWorker

MAX_MODELS = 20_000
MAX_WORKERS = 20_000
MAX_INTERVAL_MS = 600_000
MAX_NAME_CHARACTERS = 128
_REGION = re.compile(r"[a-z0-9-]{1,32}")


def report_of(message: scheduler_pb2.ReportDemandRequest) -> Report:
    """Raises InvalidArgument."""
    if not 0 < message.interval_ms <= MAX_INTERVAL_MS:
        raise InvalidArgument(f"interval_ms is {message.interval_ms}; 1 to {MAX_INTERVAL_MS} is expected")
    if not _REGION.fullmatch(message.region):
        raise InvalidArgument(f"{message.region[:64]!r} is no region; lower-case letters, digits and '-' are, up to 32 of them")
    if len(message.models) > MAX_MODELS or len(message.workers) > MAX_WORKERS:
        raise InvalidArgument(
            f"{len(message.models)} models and {len(message.workers)} workers are told of;"
            f" a message takes {MAX_MODELS} and {MAX_WORKERS}, so tell of fewer"
        )
    return Report(
        Region(message.region),
        message.interval_ms / 1000,
        tuple(_asked(each, message.interval_ms / 1000) for each in message.models),
        tuple(_seen(each) for each in message.workers),
    )


def _asked(message: scheduler_pb2.ModelDemand, interval_s: float) -> Asked:
    if not message.model or len(message.model) > MAX_NAME_CHARACTERS or len(message.version) > MAX_NAME_CHARACTERS:
        raise InvalidArgument(f"a model's name has 1 to {MAX_NAME_CHARACTERS} characters, a version's up to as many")
    if not (math.isfinite(message.busy_s) and message.busy_s >= 0):
        raise InvalidArgument(f"busy_s of model {message.model!r} is {message.busy_s}; seconds, 0 or more, are expected")
    return Asked(
        ModelName(message.model),
        ModelVersion(message.version),
        message.requests,
        message.refused,
        message.missed,
        message.busy_s,
    )


def _seen(message: scheduler_pb2.WorkerReport) -> SeenWorker:
    if not message.worker_id or len(message.worker_id) > MAX_NAME_CHARACTERS:
        raise InvalidArgument(
            f"a worker_id has 1 to {MAX_NAME_CHARACTERS} characters; one of {len(message.worker_id)} was sent"
        )
    latency_ms = message.latency_ms if math.isfinite(message.latency_ms) else 0.0
    return SeenWorker(
        WorkerId(message.worker_id),
        message.in_flight,
        message.told_in_flight,
        message.queued_rows,
        max(0.0, latency_ms),
        message.avoided,
    )
