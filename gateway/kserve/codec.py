"""KServe messages that the gateway makes itself: stream errors, statistics of many workers as one, the repository's index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inference import grpc_service_pb2 as kserve

from gateway.cache.types import CacheCounts
from gateway.types import PublishedVersion
from placement.types import Copy, CopyState, version_number
from runtime.ids import ModelName, ModelVersion

_ERROR_TAG = 0x0A
_SHOWN: dict[CopyState, str] = {
    CopyState.READY: "READY",
    CopyState.LOADING: "LOADING",
    CopyState.DRAINING: "UNLOADING",
    CopyState.UNLOADING: "UNLOADING",
    CopyState.FAILED: "UNAVAILABLE",
    CopyState.UNAVAILABLE: "UNAVAILABLE",
}
"""Triton's four words (model_lifecycle.h, ModelReadyState)."""


def stream_error(message: str, request_id: str) -> bytes:
    """What ends one request of a stream and leaves the stream open."""
    answer = kserve.ModelStreamInferResponse(error_message=message)
    answer.infer_response.id = request_id
    return answer.SerializeToString()


def model_index(
    published: Iterable[PublishedVersion], copies: Iterable[Copy]
) -> list[kserve.RepositoryIndexResponse.ModelIndex]:
    """Every version that is published or held, with the best state that any copy of it is in."""
    held: dict[tuple[ModelName, ModelVersion], list[Copy]] = {(each.model, each.version): [] for each in published}
    for copy in copies:
        held.setdefault((copy.model, copy.version), []).append(copy)
    ordered = sorted(held.items(), key=lambda item: (item[0][0], version_number(item[0][1])))
    return [_index_entry(model, version, found) for (model, version), found in ordered]


def _index_entry(model: ModelName, version: ModelVersion, copies: list[Copy]) -> kserve.RepositoryIndexResponse.ModelIndex:
    entry = kserve.RepositoryIndexResponse.ModelIndex(name=model, version=version, state="UNAVAILABLE", reason="unloaded")
    for state in _SHOWN:
        found = [copy for copy in copies if copy.state is state]
        if found:
            entry.state, entry.reason = _SHOWN[state], next((copy.reason for copy in found if copy.reason), "")
            break
    return entry


def summed(answers: Iterable[kserve.ModelStatisticsResponse]) -> kserve.ModelStatisticsResponse:
    """Statistics of several workers as those of one server."""
    sums: dict[tuple[str, str], kserve.ModelStatistics] = {}
    for answer in answers:
        for one in answer.model_stats:
            total = sums.get((one.name, one.version))
            if total is None:
                sums[one.name, one.version] = one
            else:
                _add(total, one)
    ordered = sorted(sums.items(), key=lambda item: (item[0][0], version_number(ModelVersion(item[0][1]))))
    return kserve.ModelStatisticsResponse(model_stats=[total for _, total in ordered])


def add_cached(total: kserve.ModelStatisticsResponse, counts: Mapping[tuple[ModelName, ModelVersion], CacheCounts]) -> None:
    """What a cache of this gateway found, put to what workers told of the same versions.

    As Triton has it, an answer given again counts among the inferences and not among the executions; here as one row, because
    nobody looked into it.
    """
    for one in total.model_stats:
        found = counts.get((ModelName(one.name), ModelVersion(one.version)))
        if found is None:
            continue
        one.inference_count += found.hits
        _add_times(one.inference_stats.success, found.hits, found.hit_ns)
        _add_times(one.inference_stats.cache_hit, found.hits, found.hit_ns)
        _add_times(one.inference_stats.cache_miss, found.misses, found.miss_ns)


def _add_times(total: kserve.StatisticDuration, count: int, ns: int) -> None:
    total.count += count
    total.ns += ns


def _add(total: kserve.ModelStatistics, one: kserve.ModelStatistics) -> None:
    total.last_inference = max(total.last_inference, one.last_inference)
    total.inference_count += one.inference_count
    total.execution_count += one.execution_count
    for name in ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"):
        _add_duration(getattr(total.inference_stats, name), getattr(one.inference_stats, name))
    _add_batches(total, one)
    for key, response in one.response_stats.items():
        for name in ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel"):
            _add_duration(getattr(total.response_stats[key], name), getattr(response, name))
    total.memory_usage.extend(one.memory_usage)


def _add_batches(total: kserve.ModelStatistics, one: kserve.ModelStatistics) -> None:
    known = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in one.batch_stats:
        into = known.get(batch.batch_size) or total.batch_stats.add(batch_size=batch.batch_size)
        for name in ("compute_input", "compute_infer", "compute_output"):
            _add_duration(getattr(into, name), getattr(batch, name))
    total.batch_stats.sort(key=lambda batch: batch.batch_size)


def _add_duration(total: kserve.StatisticDuration, one: kserve.StatisticDuration) -> None:
    total.count += one.count
    total.ns += one.ns
