"""Triton's dynamic_batching and sequence_batching as a manifest has them.

A codec. What would make a model answer otherwise here is refused; what only makes it slower is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from inference import model_config_pb2 as pb
from penstock.registry.v1 import models_pb2

from runtime.triton_engines import TritonConfigRefused

MAX_PRIORITY_LEVELS = 64
_UINT32 = 2**32 - 1
_Control = pb.ModelSequenceBatching.Control
_KINDS = MappingProxyType(
    {
        _Control.CONTROL_SEQUENCE_START: models_pb2.SEQUENCE_CONTROL_KIND_START,
        _Control.CONTROL_SEQUENCE_END: models_pb2.SEQUENCE_CONTROL_KIND_END,
        _Control.CONTROL_SEQUENCE_READY: models_pb2.SEQUENCE_CONTROL_KIND_READY,
        _Control.CONTROL_SEQUENCE_CORRID: models_pb2.SEQUENCE_CONTROL_KIND_CORRID,
    }
)
_ID_DATATYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


@dataclass(slots=True)
class Reading:
    """One configuration while it is read: where it is from, and what of it is left out."""

    source: str
    warnings: list[str] = field(default_factory=list)

    def refused(self, sentence: str) -> TritonConfigRefused:
        return TritonConfigRefused(f"{self.source}: {sentence}")

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def whole(self, what: str, value: int, most: int = _UINT32) -> int:
        """A number from 0, as the manifest can hold it."""
        if not 0 <= value <= most:
            raise self.refused(f"{what} is {value}; a whole number from 0 to {most} is expected")
        return value

    def datatype(self, what: str, number: int) -> str:
        """KServe's name of one of Triton's datatypes."""
        try:
            name = pb.DataType.Name(pb.DataType.ValueType(number)).removeprefix("TYPE_")
        except ValueError:
            name = "INVALID"
        if name == "INVALID":
            raise self.refused(f"{what} has no data_type; give it one, such as TYPE_FP32")
        return "BYTES" if name == "STRING" else name

    def shape(self, what: str, dims: Sequence[int]) -> list[int]:
        if any(size < -1 or size == 0 for size in dims):
            raise self.refused(f"{what} has dims {list(dims)}; sizes are from 1, and -1 is one that varies")
        return list(dims)


def batching_of(reading: Reading, given: pb.ModelDynamicBatching) -> models_pb2.Batching:
    levels = reading.whole("priority_levels", given.priority_levels, MAX_PRIORITY_LEVELS)
    default = given.default_priority_level
    if not (default == 0 if levels == 0 else 1 <= default <= levels):
        raise reading.refused(f"default_priority_level is {default} of {levels} priority_levels; it is one of them")
    for level in given.priority_queue_policy:
        if not 1 <= level <= levels:
            raise reading.refused(f"priority_queue_policy is given for priority {level}; the levels are 1 to {levels}")
    return models_pb2.Batching(
        max_queue_delay_us=given.max_queue_delay_microseconds,
        preferred_batch_sizes=_sizes(reading, given.preferred_batch_size),
        preserve_ordering=given.preserve_ordering,
        priority_levels=levels,
        default_priority_level=default,
        default_queue_policy=queue_policy_of(given.default_queue_policy) if given.HasField("default_queue_policy") else None,
        priority_queue_policies={level: queue_policy_of(policy) for level, policy in given.priority_queue_policy.items()},
    )


def queue_policy_of(given: pb.ModelQueuePolicy) -> models_pb2.QueuePolicy:
    delays = given.timeout_action == pb.ModelQueuePolicy.DELAY
    return models_pb2.QueuePolicy(
        timeout_action=models_pb2.TIMEOUT_ACTION_DELAY if delays else models_pb2.TIMEOUT_ACTION_REJECT,
        default_timeout_us=given.default_timeout_microseconds,
        allow_timeout_override=given.allow_timeout_override,
        max_queue_size=given.max_queue_size,
    )


def sequences_of(reading: Reading, given: pb.ModelSequenceBatching) -> tuple[models_pb2.SequenceBatching, models_pb2.Batching]:
    """The sequences, and how the requests of several are batched."""
    if given.iterative_sequence:
        raise reading.refused("iterative_sequence re-schedules one request many times, which is not done here")
    sequences = models_pb2.SequenceBatching(
        max_idle_us=given.max_sequence_idle_microseconds,
        controls=[_control(reading, each) for each in given.control_input],
        states=[_state(reading, each) for each in given.state],
        strategy=models_pb2.SEQUENCE_STRATEGY_DIRECT,
    )
    if given.WhichOneof("strategy_choice") != "oldest":
        if given.direct.minimum_slot_utilization:
            reading.warn("sequence_batching.direct.minimum_slot_utilization is left out: an execution does not wait for slots")
        return sequences, models_pb2.Batching(max_queue_delay_us=given.direct.max_queue_delay_microseconds)
    oldest = given.oldest
    sequences.strategy = models_pb2.SEQUENCE_STRATEGY_OLDEST
    sequences.max_sequences = reading.whole("max_candidate_sequences", oldest.max_candidate_sequences)
    return sequences, models_pb2.Batching(
        max_queue_delay_us=oldest.max_queue_delay_microseconds,
        preferred_batch_sizes=_sizes(reading, oldest.preferred_batch_size),
        preserve_ordering=oldest.preserve_ordering,
    )


def _sizes(reading: Reading, sizes: Sequence[int]) -> list[int]:
    return [reading.whole("preferred_batch_size", size) for size in sizes]


def _control(reading: Reading, given: pb.ModelSequenceBatching.ControlInput) -> models_pb2.SequenceControl:
    what = f"control_input {given.name[:80]!r}"
    if not given.name or len(given.control) != 1:
        raise reading.refused(f"{what} has {len(given.control)} controls; each control is an input with a name of its own")
    control = given.control[0]
    if control.kind == _Control.CONTROL_SEQUENCE_CORRID:
        datatype = reading.datatype(what, control.data_type)
        if datatype not in _ID_DATATYPES:
            raise reading.refused(f"{what} has the sequence id as {datatype}; it can be: {', '.join(_ID_DATATYPES)}")
    else:
        datatype = _flag(reading, what, control)
    return models_pb2.SequenceControl(input=given.name, kind=_KINDS[control.kind], datatype=datatype)


_FLAGS: Mapping[str, Callable[[_Control], Sequence[float]]] = MappingProxyType(
    {
        "FP32": lambda control: control.fp32_false_true,
        "INT32": lambda control: control.int32_false_true,
        "BOOL": lambda control: control.bool_false_true,
    }
)


def _flag(reading: Reading, what: str, control: _Control) -> str:
    given = {name: list(values(control)) for name, values in _FLAGS.items() if values(control)}
    if len(given) != 1:
        raise reading.refused(f"{what} needs exactly one of fp32_false_true, int32_false_true and bool_false_true")
    datatype, values = given.popitem()
    if values != [0, 1]:
        raise reading.refused(f"{what} says false and true as {values}; here they are 0 and 1")
    return datatype


def _state(reading: Reading, given: pb.ModelSequenceBatching.State) -> models_pb2.SequenceState:
    what = f"state {given.input_name[:80]!r}"
    if not given.input_name or not given.output_name:
        raise reading.refused(f"{what} needs an input_name and an output_name")
    if any(each.WhichOneof("state_data") == "data_file" for each in given.initial_state):
        raise reading.refused(f"{what} starts from a file; here a state starts as zeros")
    if given.use_growable_memory:
        raise reading.refused(f"{what} grows (use_growable_memory); here a state has one size")
    shape = reading.shape(what, given.dims)
    if -1 in shape:
        raise reading.refused(f"{what} has dims {shape}; here a state has one size")
    return models_pb2.SequenceState(
        input=given.input_name, output=given.output_name, datatype=reading.datatype(what, given.data_type), shape=shape
    )
