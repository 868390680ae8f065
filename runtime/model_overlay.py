"""A Triton configuration laid over a model that is described already: the configuration's words count, and where it has none
the model's own.

A codec. Used where a load brings a configuration for files that stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inference import model_config_pb2 as pb
from penstock.registry.v1 import models_pb2

from runtime.model_description import manifest_cache_fault
from runtime.triton_config import WARM_UP_FOLDER, carry
from runtime.triton_engines import TritonConfigRefused, listed

_KEPT = (
    *("task", "description", "licence", "tier", "memory_bytes", "compiled_for", "tenant", "confidential", "files", "version"),
    *("context_tokens", "cost_per_million_tokens", "capabilities"),
)
"""Of which ModelConfig knows nothing."""


def overlaid(source: str, base: models_pb2.Manifest, paths: Collection[str], config: pb.ModelConfig) -> models_pb2.Manifest:
    """The base's manifest as the configuration has it. Raises TritonConfigRefused, also for another model or engine."""
    if config.name and config.name != base.model:
        raise TritonConfigRefused(f"{source}: name is {config.name[:128]!r}, and the model is {base.model!r}")
    given = pb.ModelConfig.FromString(config.SerializeToString())
    if not given.platform and not given.backend and not given.default_model_filename and "file" in base.parameters:
        given.default_model_filename = base.parameters["file"]

    def no_labels(name: str) -> Sequence[str]:
        raise TritonConfigRefused(
            f"{source}: label_filename {name[:80]!r} cannot be read by a load; outputs named as before keep their labels"
        )

    manifest = carry(source, given, base.model, paths, no_labels).manifest
    if manifest.engine != base.engine:
        raise TritonConfigRefused(
            f"{source}: it asks for engine {manifest.engine!r}, and the model's files are for {base.engine!r}"
        )
    _fill_in(manifest, base)
    wanted = manifest.response_cache if given.HasField("response_cache") else base.response_cache
    manifest.response_cache = wanted and not manifest_cache_fault(manifest)
    _find_warm_up_data(source, manifest, paths)
    return manifest


def _fill_in(manifest: models_pb2.Manifest, base: models_pb2.Manifest) -> None:
    """What was not configured is as it was."""
    if not manifest.inputs and not manifest.outputs and not manifest.max_batch_size:
        manifest.max_batch_size = base.max_batch_size
    if not manifest.inputs:
        manifest.inputs.extend(base.inputs)
    labels = {output.name: output.labels for output in base.outputs}
    for output in manifest.outputs:
        output.labels.extend(labels.get(output.name, ()))
    if not manifest.outputs:
        manifest.outputs.extend(base.outputs)
    for name in _KEPT:
        for descriptor, value in base.ListFields():
            if descriptor.name != name:
                continue
            if descriptor.is_repeated:
                getattr(manifest, name).extend(value)
            elif descriptor.message_type is not None:
                getattr(manifest, name).CopyFrom(value)
            else:
                setattr(manifest, name, value)


def _find_warm_up_data(source: str, manifest: models_pb2.Manifest, paths: Collection[str]) -> None:
    for warm_up in manifest.warm_ups:
        for given in warm_up.inputs.values():
            beside = f"{WARM_UP_FOLDER}/{given.file}"
            if not given.file or given.file in paths:
                continue
            if beside not in paths:
                raise TritonConfigRefused(
                    f"{source}: warm-up data {given.file[:80]!r} is no file of the model: {listed(paths)}"
                )
            given.file = beside
