"""Triton's ModelConfig, as `config.pbtxt` or as JSON, read into a manifest.

A codec. What a manifest has no word for is refused where leaving it out would change an answer, and noted as a warning where it
would not; a field that ModelConfig does not have is refused by its name. Every field of ModelConfig is decided on in one of the
tables here. Never opens a file: label files are asked for by name.

Source: Triton's model_config.proto and user_guide/model_configuration.md; the onnxruntime backend's README for its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from google.protobuf import json_format, text_format
from inference import model_config_pb2 as pb
from penstock.registry.v1 import models_pb2

from runtime.model_description import checked_name, manifest_cache_fault
from runtime.triton_engines import EngineChoice, TritonConfigRefused, engine_of, is_inside
from runtime.triton_parameters import parameters_of
from runtime.triton_scheduling import Reading, batching_of, sequences_of

MAX_CONFIG_BYTES = 1 << 20
MAX_INSTANCES = 256
MAX_LABELS = 100_000
MAX_LABEL_BYTES = 4 << 20
WARM_UP_FOLDER = "warmup"
"""Where Triton looks for warm-up data, in the model's folder."""

ReadLabels = Callable[[str], Sequence[str]]

CARRIED = (
    *("name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "instance_group", "parameters"),
    *("default_model_filename", "dynamic_batching", "sequence_batching", "model_warmup", "model_transaction_policy"),
    *("optimization", "response_cache"),
)
LEFT_OUT: Mapping[str, str] = MappingProxyType(
    {
        "cc_model_filenames": "cc_model_filenames is left out: one file serves every GPU; publish a model for each kind",
        "metric_tags": "metric_tags are left out: metrics carry the model and its version",
        "model_metrics": "model_metrics is left out: histograms have buckets of their own",
        "runtime": "runtime is left out: engines are chosen by platform and backend",
    }
)
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "ensemble_scheduling": "ensembles are not run here; publish the models it is made of, and call one after the other",
        "model_operations": "model_operations loads libraries of custom operators, which no engine here does",
        "batch_input": "batch_input makes inputs that the model needs, which no engine here does",
        "batch_output": "batch_output cuts outputs apart, which no engine here does",
        "model_repository_agents": "model_repository_agents change or check files while they are loaded; files are signed here",
    }
)


@dataclass(frozen=True, slots=True)
class Carried:
    """A configuration as a manifest, without version and files."""

    manifest: models_pb2.Manifest
    warnings: tuple[str, ...] = ()


def parse_text(source: str, text: str) -> pb.ModelConfig:
    """Of `config.pbtxt`. Raises TritonConfigRefused, whose sentence begins with `source`."""
    _check_size(source, text)
    try:
        return text_format.Parse(text, pb.ModelConfig())
    except (text_format.ParseError, ValueError, RecursionError) as error:
        raise TritonConfigRefused(f"{source} is no model configuration: {_first_line(error)}") from error


def parse_json(source: str, text: str) -> pb.ModelConfig:
    """Of the JSON that RepositoryModelLoad takes. Raises TritonConfigRefused, whose sentence begins with `source`."""
    _check_size(source, text)
    if not text.lstrip().startswith("{"):  # json_format takes an empty list for an empty message
        raise TritonConfigRefused(f"{source} is no model configuration: a JSON object is expected")
    try:
        return json_format.Parse(text, pb.ModelConfig())
    except (json_format.ParseError, ValueError, RecursionError, TypeError, AttributeError) as error:
        raise TritonConfigRefused(f"{source} is no model configuration: {_first_line(error)}") from error


def carry(source: str, config: pb.ModelConfig, name: str, paths: Collection[str], labels: ReadLabels) -> Carried:
    """The manifest of a version with these files. `name` is the model's where the configuration has none.

    Inputs and outputs that are not configured are left empty. Raises TritonConfigRefused.
    """
    reading = Reading(source)
    check_fields(reading, config)
    choice = engine_of(source, config, paths)
    manifest = models_pb2.Manifest(
        model=checked_name(source, config.name or name),
        engine=choice.engine,
        task="tensor",
        max_batch_size=reading.whole("max_batch_size", config.max_batch_size),
        decoupled=config.model_transaction_policy.decoupled,
        instances=_instances(reading, config),
        inputs=[_input(reading, each) for each in config.input],
        outputs=[_output(reading, each, labels) for each in config.output],
        parameters=parameters_of(reading, config, choice),
        warm_ups=[_warm_up(reading, config, each) for each in config.model_warmup],
    )
    _schedule(reading, config, manifest)
    manifest.response_cache = config.response_cache.enable
    _drop_unfit_cache(reading, manifest)
    _check_twice(reading, manifest)
    _note_engine(reading, choice)
    return Carried(manifest, tuple(reading.warnings))


def chosen_versions(config: pb.ModelConfig | None, versions: Collection[int]) -> list[int]:
    """Those that the configuration's version_policy names, ascending; all where it says nothing."""
    ascending = sorted(versions)
    policy = config.version_policy if config is not None else pb.ModelVersionPolicy()
    match policy.WhichOneof("policy_choice"):
        case "latest":
            return ascending[-max(1, policy.latest.num_versions) :]
        case "specific":
            return [version for version in ascending if version in policy.specific.versions]
        case _:
            return ascending


def labels_of(source: str, name: str, content: bytes) -> list[str]:
    """A line of the label file for each class. Raises TritonConfigRefused."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TritonConfigRefused(f"{source}: label_filename {name[:80]!r} is no text in UTF-8: {error}") from error
    if len(content) > MAX_LABEL_BYTES or len(lines) > MAX_LABELS:
        raise TritonConfigRefused(
            f"{source}: label_filename {name[:80]!r} has {len(lines)} lines of {len(content)} bytes together;"
            f" {MAX_LABELS} lines of {MAX_LABEL_BYTES} bytes are taken"
        )
    return lines


def _check_size(source: str, text: str) -> None:
    if len(text) > MAX_CONFIG_BYTES:
        raise TritonConfigRefused(f"{source} has {len(text)} characters; up to {MAX_CONFIG_BYTES} are read")


def check_fields(reading: Reading, config: pb.ModelConfig) -> None:
    """Raises TritonConfigRefused for what no manifest can say, and notes what is left out."""
    for descriptor, _ in config.ListFields():
        if sentence := REFUSED.get(descriptor.name):
            raise reading.refused(sentence)
        if sentence := LEFT_OUT.get(descriptor.name):
            reading.warn(sentence)


def _input(reading: Reading, given: pb.ModelInput) -> models_pb2.TensorSpec:
    what = f"input {given.name[:80]!r}"
    if given.allow_ragged_batch:
        raise reading.refused(f"{what} allows ragged batches, which are not made here; pad it")
    if given.is_non_linear_format_io:
        raise reading.refused(f"{what} has a non-linear format; build the plan with linear inputs")
    _check_reshape(reading, what, given.dims, given.reshape if given.HasField("reshape") else None)
    return models_pb2.TensorSpec(
        name=_named(reading, "an input", given.name),
        datatype=reading.datatype(what, given.data_type),
        shape=reading.shape(what, given.dims),
        optional=given.optional,
    )


def _output(reading: Reading, given: pb.ModelOutput, labels: ReadLabels) -> models_pb2.TensorSpec:
    what = f"output {given.name[:80]!r}"
    if given.is_non_linear_format_io:
        raise reading.refused(f"{what} has a non-linear format; build the plan with linear outputs")
    _check_reshape(reading, what, given.dims, given.reshape if given.HasField("reshape") else None)
    if given.label_filename and not is_inside(given.label_filename):
        raise reading.refused(f"{what} has label_filename {given.label_filename[:80]!r}, which leads out of the model's folder")
    return models_pb2.TensorSpec(
        name=_named(reading, "an output", given.name),
        datatype=reading.datatype(what, given.data_type),
        shape=reading.shape(what, given.dims),
        labels=labels(given.label_filename) if given.label_filename else (),
    )


def _check_reshape(reading: Reading, what: str, dims: Sequence[int], reshape: pb.ModelTensorReshape | None) -> None:
    if reshape is not None and list(reshape.shape) != list(dims):
        raise reading.refused(
            f"{what} is {list(dims)} for clients and {list(reshape.shape)} for the model (reshape); here both are the same:"
            " give the model's own dims, and send tensors so, or export the model with the other shape"
        )


def _named(reading: Reading, what: str, name: str) -> str:
    if not name:
        raise reading.refused(f"{what} has no name")
    return name


def _instances(reading: Reading, config: pb.ModelConfig) -> int:
    """How many executions may run side by side, over all groups."""
    groups = [group for group in config.instance_group if not group.passive]
    if any(group.rate_limiter.ByteSize() for group in groups):
        reading.warn("rate_limiter is left out: a worker's limits are its own settings")
    if any(group.profile for group in groups):
        reading.warn("instance_group.profile is left out: profiles are chosen by the shapes that come")
    if any(group.host_policy or group.secondary_devices for group in groups):
        reading.warn("instance_group.host_policy and secondary_devices are left out")
    return reading.whole("instance_group count", sum(max(1, group.count) for group in groups), MAX_INSTANCES)


def _warm_up(reading: Reading, config: pb.ModelConfig, given: pb.ModelWarmup) -> models_pb2.WarmUp:
    known = {each.name for each in config.input}
    if left_out := sorted(name for name in given.inputs if known and name not in known):
        reading.warn(f"model_warmup {given.name!r}: {left_out[0]!r} is no input that requests carry; it is made for them")
    return models_pb2.WarmUp(
        name=given.name,
        rows=given.batch_size if config.max_batch_size > 0 else 0,
        count=given.count,
        inputs={name: _warm_up_input(reading, name, each) for name, each in given.inputs.items() if not known or name in known},
    )


def _warm_up_input(reading: Reading, name: str, given: pb.ModelWarmup.Input) -> models_pb2.WarmUpInput:
    what = f"model_warmup input {name[:80]!r}"
    shape = reading.shape(what, given.dims)
    match given.WhichOneof("input_data_type"):
        case "random_data":
            return models_pb2.WarmUpInput(shape=shape, random=True)
        case "input_data_file":
            if not is_inside(given.input_data_file):
                raise reading.refused(f"{what} has a file that leads out of the model's folder: {given.input_data_file[:80]!r}")
            return models_pb2.WarmUpInput(shape=shape, file=given.input_data_file)
        case _:
            return models_pb2.WarmUpInput(shape=shape, zeros=True)


def _schedule(reading: Reading, config: pb.ModelConfig, manifest: models_pb2.Manifest) -> None:
    match config.WhichOneof("scheduling_choice"):
        case "dynamic_batching":
            manifest.batching.CopyFrom(batching_of(reading, config.dynamic_batching))
        case "sequence_batching":
            sequences, batching = sequences_of(reading, config.sequence_batching)
            manifest.sequence_batching.CopyFrom(sequences)
            manifest.batching.CopyFrom(batching)
            _drop_made_inputs(manifest)


def _drop_unfit_cache(reading: Reading, manifest: models_pb2.Manifest) -> None:
    """Without a cache every answer is as it would have been: nothing to refuse an import for."""
    if manifest.response_cache and (fault := manifest_cache_fault(manifest)):
        manifest.response_cache = False
        reading.warn(f"response_cache is left out: it {fault}")


def _drop_made_inputs(manifest: models_pb2.Manifest) -> None:
    """Controls are made by the worker: a configuration may list them among the inputs, a manifest does not."""
    made = {control.input for control in manifest.sequence_batching.controls}
    kept = [tensor for tensor in manifest.inputs if tensor.name not in made]
    del manifest.inputs[:]
    manifest.inputs.extend(kept)


def _check_twice(reading: Reading, manifest: models_pb2.Manifest) -> None:
    for what, names in (
        ("input", [each.name for each in manifest.inputs]),
        ("output", [each.name for each in manifest.outputs]),
    ):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise reading.refused(f"{what} {twice[0][:80]!r} is given twice")


def _note_engine(reading: Reading, choice: EngineChoice) -> None:
    if choice.engine == "tensorrt":
        reading.warn(
            "a TensorRT plan runs only with the runtime and on the GPUs it was built for; `penstock build-engine` builds"
        )
    elif choice.engine == "torch":
        reading.warn("inputs go by the names of the exported module's arguments; a copy that is loaded checks them")


def _first_line(error: BaseException) -> str:
    """What the parser says, with the position and the field."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
