"""What a model is and has done, as the KServe contract's messages say it: metadata and statistics.

A codec, one way. The configuration, which perf_analyzer reads too before it starts, is `model_config.py`'s.
"""

from __future__ import annotations

from inference import grpc_service_pb2

from worker.copies import LoadedModel
from worker.kserve.model_config import platform_of
from worker.statistics import Duration, ResponseTimes
from worker.types import ModelSpec, TensorSpec


def metadata_of(spec: ModelSpec, versions: list[str]) -> grpc_service_pb2.ModelMetadataResponse:
    """Shapes include the batch dimension, as -1."""
    return grpc_service_pb2.ModelMetadataResponse(
        name=spec.model,
        versions=versions,
        platform=platform_of(spec).platform,
        inputs=[_tensor_metadata(spec, tensor) for tensor in spec.inputs],
        outputs=[_tensor_metadata(spec, tensor) for tensor in spec.outputs],
    )


def statistics_of(loaded: LoadedModel) -> grpc_service_pb2.ModelStatistics:
    """The counters as they are now."""
    counted = loaded.statistics
    nothing = grpc_service_pb2.StatisticDuration()
    return grpc_service_pb2.ModelStatistics(
        name=loaded.spec.model,
        version=loaded.spec.version,
        last_inference=counted.last_inference_ms,
        inference_count=counted.inference_count,
        execution_count=counted.execution_count,
        inference_stats=grpc_service_pb2.InferStatistics(
            success=_duration(counted.success),
            fail=_duration(counted.fail),
            queue=_duration(counted.queue),
            compute_input=_duration(counted.compute_input),
            compute_infer=_duration(counted.compute_infer),
            compute_output=_duration(counted.compute_output),
            cache_hit=nothing,
            cache_miss=nothing,
        ),
        batch_stats=[
            grpc_service_pb2.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(times.compute_input),
                compute_infer=_duration(times.compute_infer),
                compute_output=_duration(times.compute_output),
            )
            for rows, times in sorted(counted.batches.items())
        ],
        memory_usage=_memory_usage(loaded.spec, counted.memory_bytes),
        response_stats={str(index): _responses(times) for index, times in enumerate(counted.responses)},
    )


def _duration(duration: Duration) -> grpc_service_pb2.StatisticDuration:
    return grpc_service_pb2.StatisticDuration(count=duration.count, ns=duration.ns)


def _tensor_metadata(spec: ModelSpec, tensor: TensorSpec) -> grpc_service_pb2.ModelMetadataResponse.TensorMetadata:
    shape = ((-1,) if spec.max_batch_size > 0 else ()) + tensor.shape
    return grpc_service_pb2.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)


def _responses(times: ResponseTimes) -> grpc_service_pb2.InferResponseStatistics:
    return grpc_service_pb2.InferResponseStatistics(
        compute_infer=_duration(times.compute_infer),
        compute_output=_duration(times.compute_output),
        success=_duration(times.success),
        fail=_duration(times.fail),
        empty_response=_duration(times.empty_response),
        cancel=_duration(times.cancel),
    )


def _memory_usage(spec: ModelSpec, measured_bytes: int) -> list[grpc_service_pb2.MemoryUsage]:
    """What was measured, else what the manifest says that an open copy takes; none where neither is known."""
    taken_bytes = measured_bytes or spec.memory_bytes
    return [grpc_service_pb2.MemoryUsage(type="CPU", id=0, byte_size=taken_bytes)] if taken_bytes else []
