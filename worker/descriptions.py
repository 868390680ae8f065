"""What a model is and has done, as the KServe contract's messages say it: metadata, configuration, statistics.

A codec, one way. perf_analyzer reads metadata and configuration before it starts, and statistics after every window.
"""

from __future__ import annotations

from inference import grpc_service_pb2, model_config_pb2

from worker.batching import DEFAULT_QUEUE_SIZE
from worker.copies import LoadedModel
from worker.datatypes import DATATYPES
from worker.statistics import Duration
from worker.types import ModelSpec, TensorSpec

_PLATFORMS = {"onnx": ("onnxruntime_onnx", "onnxruntime"), "llm": ("onnxruntime_genai", "onnxruntime_genai")}
"""Triton's platform and backend by engine."""


def metadata_of(spec: ModelSpec, versions: list[str]) -> grpc_service_pb2.ModelMetadataResponse:
    """Shapes include the batch dimension, as -1."""
    return grpc_service_pb2.ModelMetadataResponse(
        name=spec.model,
        versions=versions,
        platform=_PLATFORMS.get(spec.engine, (spec.engine, spec.engine))[0],
        inputs=[_tensor_metadata(spec, tensor) for tensor in spec.inputs],
        outputs=[_tensor_metadata(spec, tensor) for tensor in spec.outputs],
    )


def config_of(spec: ModelSpec) -> model_config_pb2.ModelConfig:
    """Triton's ModelConfig; dims leave out the batch dimension."""
    platform, backend = _PLATFORMS.get(spec.engine, (spec.engine, spec.engine))
    device = spec.parameters.get("device", "cpu")
    kinds = model_config_pb2.ModelInstanceGroup
    config = model_config_pb2.ModelConfig(
        name=spec.model,
        platform=platform,
        backend=backend,
        version_policy=model_config_pb2.ModelVersionPolicy(latest=model_config_pb2.ModelVersionPolicy.Latest(num_versions=1)),
        max_batch_size=spec.max_batch_size,
        input=[
            model_config_pb2.ModelInput(
                name=tensor.name, data_type=_number(tensor), dims=tensor.shape, optional=tensor.optional
            )
            for tensor in spec.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(name=tensor.name, data_type=_number(tensor), dims=tensor.shape)
            for tensor in spec.outputs
        ],
        instance_group=[
            model_config_pb2.ModelInstanceGroup(
                name=f"{spec.model}_0", kind=kinds.KIND_CPU if device == "cpu" else kinds.KIND_GPU, count=1
            )
        ],
        parameters={key: model_config_pb2.ModelParameter(string_value=value) for key, value in sorted(spec.parameters.items())},
    )
    if spec.max_batch_size > 0:
        batching = config.dynamic_batching
        batching.preferred_batch_size.extend(spec.batching.preferred_batch_sizes)
        batching.max_queue_delay_microseconds = spec.batching.max_queue_delay_us
        batching.preserve_ordering = True
        batching.default_queue_policy.allow_timeout_override = True
        batching.default_queue_policy.max_queue_size = spec.batching.max_queue_size or DEFAULT_QUEUE_SIZE
    if spec.decoupled:
        config.model_transaction_policy.decoupled = True
    return config


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
    )


def _duration(duration: Duration) -> grpc_service_pb2.StatisticDuration:
    return grpc_service_pb2.StatisticDuration(count=duration.count, ns=duration.ns)


def _tensor_metadata(spec: ModelSpec, tensor: TensorSpec) -> grpc_service_pb2.ModelMetadataResponse.TensorMetadata:
    shape = ((-1,) if spec.max_batch_size > 0 else ()) + tensor.shape
    return grpc_service_pb2.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=shape)


def _number(tensor: TensorSpec) -> model_config_pb2.DataType.ValueType:
    return model_config_pb2.DataType.ValueType(DATATYPES[tensor.datatype].number)
