"""What `model.toml` may say, read into a manifest.

A codec. Every refusal names the file, the field and the values it takes; a field that is not known is refused, because a
misspelt one would be ignored in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from penstock.registry.v1 import models_pb2

from runtime.errors import Code, PenstockError

TASKS = ("tensor", "chat", "completion", "embedding")
DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIELDS = (
    *("name", "engine", "task", "description", "licence", "max_batch_size", "tier", "decoupled", "instances", "memory_bytes"),
    "confidential",
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


class ModelFolderRefused(PenstockError, code=Code.INVALID_ARGUMENT, reason="MODEL_FOLDER_REFUSED"):
    """The folder does not describe a model."""


def describe(source: str, content: Mapping[str, Any]) -> models_pb2.Manifest:
    """The manifest, without version and files. Raises ModelFolderRefused, whose sentence begins with `source`."""
    top = _Table(source, "", content)
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


def _manifest(top: _Table) -> models_pb2.Manifest:
    top.knows(_FIELDS)
    return models_pb2.Manifest(
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
    )


def _batching(table: _Table) -> models_pb2.Batching:
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


def _policy(table: _Table) -> models_pb2.QueuePolicy:
    table.knows(_POLICY_FIELDS)
    return models_pb2.QueuePolicy(
        timeout_action=_TIMEOUT_ACTIONS[table.choice("timeout_action", tuple(_TIMEOUT_ACTIONS), "reject")],
        default_timeout_us=table.number("default_timeout_us"),
        allow_timeout_override=table.flag("allow_timeout_override"),
        max_queue_size=table.number("max_queue_size"),
    )


def _sequence_batching(table: _Table) -> models_pb2.SequenceBatching:
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


def _warm_up(table: _Table) -> models_pb2.WarmUp:
    table.knows(("name", "rows", "count", "inputs"))
    inputs = table.table("inputs")
    return models_pb2.WarmUp(
        name=table.text("name", ""),
        rows=table.number("rows"),
        count=table.number("count"),
        inputs={name: _warm_up_input(inputs.table(name)) for name in inputs.fields},
    )


def _warm_up_input(table: _Table) -> models_pb2.WarmUpInput:
    table.knows(("data", "file", "shape"))
    data = table.choice("data", ("zeros", "random", "file"), "file" if table.has("file") else "zeros")
    shape = table.shape("shape") if table.has("shape") else []
    if data == "file":
        return models_pb2.WarmUpInput(shape=shape, file=table.text("file"))
    if data == "random":
        return models_pb2.WarmUpInput(shape=shape, random=True)
    return models_pb2.WarmUpInput(shape=shape, zeros=True)


def _compiled_for(table: _Table) -> models_pb2.CompiledFor:
    table.knows(("runtime", "version", "compute_capabilities"))
    return models_pb2.CompiledFor(
        runtime=table.text("runtime"),
        version=table.text("version"),
        compute_capabilities=table.texts("compute_capabilities"),
    )


def _tensor(table: _Table) -> models_pb2.TensorSpec:
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


class _Table:
    """One table of the file, which names the field at fault."""

    def __init__(self, source: str, path: str, content: Mapping[str, Any]) -> None:
        self.source, self._path, self._content = source, path, content

    def refused(self, sentence: str) -> ModelFolderRefused:
        where = f"{self.source}: [{self._path}] " if self._path else f"{self.source}: "
        return ModelFolderRefused(where + sentence)

    def knows(self, fields: Sequence[str]) -> None:
        if unknown := sorted(set(self._content) - set(fields)):
            raise self.refused(f"{unknown[0]!r} is not a field; the fields are: {', '.join(sorted(fields))}")

    def has(self, field: str) -> bool:
        return field in self._content

    @property
    def fields(self) -> list[str]:
        return list(self._content)

    def items(self) -> list[tuple[str, Any]]:
        return list(self._content.items())

    def text(self, field: str, default: str | None = None) -> str:
        value = self._content.get(field, default)
        if not isinstance(value, str) or (default is None and not value):
            raise self.refused(f"{field} is {value!r}; a string is needed")
        return value

    def choice(self, field: str, allowed: Sequence[str], default: str | None = None) -> str:
        value = self.text(field, default)
        if value not in allowed:
            raise self.refused(f"{field} is {value!r}; it can be: {', '.join(allowed)}")
        return value

    def flag(self, field: str) -> bool:
        value = self._content.get(field, False)
        if not isinstance(value, bool):
            raise self.refused(f"{field} is {value!r}; it is true or false")
        return value

    def number(self, field: str) -> int:
        value = self._content.get(field, 0)
        if not _is_number(value):
            raise self.refused(f"{field} is {value!r}; a whole number from 0 is needed")
        return int(value)

    def numbers(self, field: str) -> list[int]:
        values = self.array(field)
        if not all(_is_number(value) for value in values):
            raise self.refused(f"{field} is {values!r}; whole numbers from 0 are needed")
        return values

    def texts(self, field: str) -> list[str]:
        values = self.array(field)
        if not all(isinstance(value, str) for value in values):
            raise self.refused(f"{field} is {values!r}; strings are needed")
        return values

    def shape(self, field: str) -> list[int]:
        sizes = self._content.get(field)
        if not isinstance(sizes, list) or not all(_is_number(size) or (type(size) is int and size == -1) for size in sizes):
            raise self.refused(f"{field} is {sizes!r}; it is a list of sizes, -1 for one that varies")
        return sizes

    def array(self, field: str) -> list[Any]:
        values = self._content.get(field, [])
        if not isinstance(values, list):
            raise self.refused(f"{field} is {values!r}; a list is needed")
        return values

    def table(self, field: str) -> _Table:
        value = self._content.get(field, {})
        if not isinstance(value, dict):
            raise self.refused(f"{field} is a table; write [{self._under(field)}]")
        return _Table(self.source, self._under(field), value)

    def tables(self, field: str, fields: Sequence[str] = ()) -> Iterator[_Table]:
        values = self._content.get(field, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self.refused(f"{field} is a list of tables; write [[{self._under(field)}]]")
        for value in values:
            table = _Table(self.source, self._under(field), value)
            if fields:
                table.knows(fields)
            yield table

    def _under(self, field: str) -> str:
        return f"{self._path}.{field}" if self._path else field


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
