"""What `model.toml` may say, read into a manifest.

A codec. Every refusal names the file, the field and the values it takes; a field that is not known is refused, because a
misspelt one would be ignored in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from penstock.registry.v1 import models_pb2

from runtime.description_table import DescriptionTable, ModelFolderRefused
from runtime.model_traits import CAPABILITIES, cache_fault, unknown_capabilities

TASKS = ("tensor", "chat", "completion", "embedding")
DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS = (
    *("name", "engine", "task", "description", "licence", "max_batch_size", "tier", "decoupled", "instances", "memory_bytes"),
    *("confidential", "response_cache", "context_tokens", "cost_per_million_tokens", "capabilities"),
    *("inputs", "outputs", "parameters", "batching", "sequence_batching", "warm_ups", "compiled_for"),
)
_POLICY_FIELDS = ("timeout_action", "default_timeout_us", "allow_timeout_override", "max_queue_size")
_TIMEOUT_ACTIONS = MappingProxyType({"reject": models_pb2.TIMEOUT_ACTION_REJECT, "delay": models_pb2.TIMEOUT_ACTION_DELAY})
_STRATEGIES = MappingProxyType({"direct": models_pb2.SEQUENCE_STRATEGY_DIRECT, "oldest": models_pb2.SEQUENCE_STRATEGY_OLDEST})
_CONTROLS = MappingProxyType(
    {
        "start": models_pb2.SEQUENCE_CONTROL_KIND_START,
        "end": models_pb2.SEQUENCE_CONTROL_KIND_END,
        "ready": models_pb2.SEQUENCE_CONTROL_KIND_READY,
        "corrid": models_pb2.SEQUENCE_CONTROL_KIND_CORRID,
    }
)


def describe(source: str, content: Mapping[str, Any]) -> models_pb2.Manifest:
    """The manifest, without version and files. Raises ModelFolderRefused, whose sentence begins with `source`."""
    top = DescriptionTable(source, "", content)
    try:
        return _manifest(top)
    except ValueError as error:  # protobuf's word for a number that its field cannot hold
        raise top.refused(f"a number in it is too large: {error}") from error


def checked_name(source: str, name: str) -> str:
    """A model's name, if it can be one. Raises ModelFolderRefused, whose sentence begins with `source`."""
    if not _NAME.fullmatch(name):
        raise ModelFolderRefused(
            f"{source}: name {name[:200]!r} may hold letters, digits, '.', '_' and '-', and starts with a letter or digit;"
            " 128 characters at most"
        )
    return name


def _manifest(top: DescriptionTable) -> models_pb2.Manifest:
    top.knows(_FIELDS)
    manifest = models_pb2.Manifest(
        model=checked_name(top.source, top.text("name")),
        engine=top.text("engine"),
        task=top.choice("task", TASKS, "tensor"),
        description=top.text("description", ""),
        licence=top.text("licence", ""),
        tier=top.text("tier", ""),
        max_batch_size=top.number("max_batch_size"),
        decoupled=top.flag("decoupled"),
        instances=top.number("instances"),
        memory_bytes=top.number("memory_bytes"),
        confidential=top.flag("confidential"),
        batching=_batching(top.table("batching")),
        sequence_batching=_sequence_batching(top.table("sequence_batching")) if top.has("sequence_batching") else None,
        warm_ups=[_warm_up(entry) for entry in top.tables("warm_ups")],
        compiled_for=_compiled_for(top.table("compiled_for")) if top.has("compiled_for") else None,
        inputs=[_tensor(entry) for entry in top.tables("inputs")],
        outputs=[_tensor(entry) for entry in top.tables("outputs")],
        parameters={key: _parameter(value) for key, value in top.table("parameters").items()},
        response_cache=top.flag("response_cache"),
        context_tokens=top.number("context_tokens"),
        cost_per_million_tokens=top.amount("cost_per_million_tokens"),
        capabilities=_capabilities(top),
    )
    if manifest.response_cache and (fault := manifest_cache_fault(manifest)):
        raise top.refused(f"response_cache {fault}; leave one of the two out")
    return manifest


def trait_faults(manifest: models_pb2.Manifest) -> list[str]:
    """What cannot be so of what a manifest says of its model besides inputs and outputs, for one that came from elsewhere."""
    faults = []
    if unknown := unknown_capabilities(manifest.capabilities):
        faults.append(f"capability {unknown[0][:80]!r}: they are {', '.join(CAPABILITIES)}")
    if manifest.response_cache and (fault := manifest_cache_fault(manifest)):
        faults.append(f"response_cache: it {fault}")
    cost = manifest.cost_per_million_tokens
    if not (math.isfinite(cost) and cost >= 0):
        faults.append(f"cost_per_million_tokens {cost}: a number from 0 is expected")
    return faults


def manifest_cache_fault(manifest: models_pb2.Manifest) -> str:
    """As `cache_fault`, of what this manifest says of its model."""
    return cache_fault(
        manifest.task,
        sequences=manifest.HasField("sequence_batching"),
        decoupled=manifest.decoupled,
        confidential=manifest.confidential,
    )


def _capabilities(top: DescriptionTable) -> list[str]:
    """Each once, in the order of the table of them."""
    named = top.texts("capabilities")
    if unknown := unknown_capabilities(named):
        raise top.refused(f"capabilities names {unknown[0][:80]!r}; they are: {', '.join(CAPABILITIES)}")
    return [each for each in CAPABILITIES if each in named]


def _batching(table: DescriptionTable) -> models_pb2.Batching:
    table.knows(
        (
            *("max_queue_delay_us", "preferred_batch_sizes", "max_queue_size", "preserve_ordering"),
            *("priority_levels", "default_priority_level", "default_queue_policy", "priority_queue_policies"),
        )
    )
    policies = table.table("priority_queue_policies")
    for level in policies.fields:
        if not level.isdecimal():
            raise policies.refused(f"{level!r} is no priority; priorities are numbers from 1")
    return models_pb2.Batching(
        max_queue_delay_us=table.number("max_queue_delay_us"),
        preferred_batch_sizes=table.numbers("preferred_batch_sizes"),
        max_queue_size=table.number("max_queue_size"),
        priority_levels=table.number("priority_levels"),
        default_priority_level=table.number("default_priority_level"),
        preserve_ordering=table.flag("preserve_ordering"),
        default_queue_policy=_policy(table.table("default_queue_policy")) if table.has("default_queue_policy") else None,
        priority_queue_policies={int(level): _policy(policies.table(level)) for level in policies.fields},
    )


def _policy(table: DescriptionTable) -> models_pb2.QueuePolicy:
    table.knows(_POLICY_FIELDS)
    return models_pb2.QueuePolicy(
        timeout_action=_TIMEOUT_ACTIONS[table.choice("timeout_action", tuple(_TIMEOUT_ACTIONS), "reject")],
        default_timeout_us=table.number("default_timeout_us"),
        allow_timeout_override=table.flag("allow_timeout_override"),
        max_queue_size=table.number("max_queue_size"),
    )


def _sequence_batching(table: DescriptionTable) -> models_pb2.SequenceBatching:
    table.knows(("strategy", "max_idle_us", "max_sequences", "max_waiting_sequences", "controls", "states"))
    return models_pb2.SequenceBatching(
        strategy=_STRATEGIES[table.choice("strategy", tuple(_STRATEGIES), "direct")],
        max_idle_us=table.number("max_idle_us"),
        max_sequences=table.number("max_sequences"),
        max_waiting_sequences=table.number("max_waiting_sequences"),
        controls=[
            models_pb2.SequenceControl(
                input=entry.text("input"),
                kind=_CONTROLS[entry.choice("kind", tuple(_CONTROLS))],
                datatype=entry.choice("datatype", DATATYPES),
            )
            for entry in table.tables("controls", ("input", "kind", "datatype"))
        ],
        states=[
            models_pb2.SequenceState(
                input=entry.text("input"),
                output=entry.text("output"),
                datatype=entry.choice("datatype", DATATYPES),
                shape=entry.shape("shape"),
            )
            for entry in table.tables("states", ("input", "output", "datatype", "shape"))
        ],
    )


def _warm_up(table: DescriptionTable) -> models_pb2.WarmUp:
    table.knows(("name", "rows", "count", "inputs"))
    inputs = table.table("inputs")
    return models_pb2.WarmUp(
        name=table.text("name", ""),
        rows=table.number("rows"),
        count=table.number("count"),
        inputs={name: _warm_up_input(inputs.table(name)) for name in inputs.fields},
    )


def _warm_up_input(table: DescriptionTable) -> models_pb2.WarmUpInput:
    table.knows(("data", "file", "shape"))
    data = table.choice("data", ("zeros", "random", "file"), "file" if table.has("file") else "zeros")
    shape = table.shape("shape") if table.has("shape") else []
    if data == "file":
        return models_pb2.WarmUpInput(shape=shape, file=table.text("file"))
    if data == "random":
        return models_pb2.WarmUpInput(shape=shape, random=True)
    return models_pb2.WarmUpInput(shape=shape, zeros=True)


def _compiled_for(table: DescriptionTable) -> models_pb2.CompiledFor:
    table.knows(("runtime", "version", "compute_capabilities"))
    return models_pb2.CompiledFor(
        runtime=table.text("runtime"),
        version=table.text("version"),
        compute_capabilities=table.texts("compute_capabilities"),
    )


def _tensor(table: DescriptionTable) -> models_pb2.TensorSpec:
    return models_pb2.TensorSpec(
        name=table.text("name"),
        datatype=table.choice("datatype", DATATYPES),
        shape=table.shape("shape"),
        labels=[str(label) for label in table.array("labels")],
        optional=table.flag("optional"),
    )


def _parameter(value: Any) -> str:
    """TOML's own words for flags, so that true is `true` everywhere."""
    return str(value).lower() if isinstance(value, bool) else str(value)
