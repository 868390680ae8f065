"""The request parameters that Triton's protocol reserves, read by their types; the others are the model's own.

A codec. What a priority, a timeout or a sequence does is for those who run the request. Source: Triton's
extension_parameters.md, extension_sequence.md and extension_schedule_policy.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference import grpc_service_pb2

from runtime.errors import InvalidArgument

_MAX_SEQUENCE_ID = 128  # characters; Triton's STRING_CORRELATION_ID_MAX_LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class SequenceMark:
    """A request's place in a sequence. The id is a number above 0, or a text that is not empty."""

    sequence_id: int | str
    start: bool = False
    end: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """The request parameters that mean something here; what else was sent is in `custom`."""

    priority: int = 0
    timeout_s: float | None = None
    empty_final: bool = False
    sequence: SequenceMark | None = None
    """None: the request belongs to no sequence."""
    custom: Mapping[str, bool | int | float | str] | None = None


def parameters_of(parameters: Mapping[str, grpc_service_pb2.InferParameter]) -> Parameters:
    """Reserved parameters by their types; others are the model's own. Raises InvalidArgument."""
    priority, timeout_s, empty_final = 0, None, False
    sequence_id: int | str = 0
    start = end = False
    custom: dict[str, bool | int | float | str] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument(f"parameter {key!r} has no value; give it one, or leave it out")
        value = getattr(parameter, choice)
        if key == "priority":
            priority = unsigned(key, choice, value)
        elif key == "timeout":
            timeout_us = unsigned(key, choice, value)
            timeout_s = timeout_us / 1e6 if timeout_us else None
        elif key == "triton_enable_empty_final_response":
            empty_final = bool(_of_type(key, choice, value, "bool_param"))
        elif key == "sequence_start":
            start = bool(_of_type(key, choice, value, "bool_param"))
        elif key == "sequence_end":
            end = bool(_of_type(key, choice, value, "bool_param"))
        elif key == "sequence_id":
            sequence_id = _sequence_id(key, choice, value)
        elif key.startswith("triton_"):
            raise InvalidArgument(f"parameter {key!r} is not known; names that start with 'triton_' are reserved")
        else:
            custom[key] = value
    sequence = SequenceMark(sequence_id, start, end) if sequence_id else None
    return Parameters(priority, timeout_s, empty_final, sequence, custom or None)


def _sequence_id(key: str, choice: str, value: Any) -> int | str:
    """0 and the empty text stand for none, as with Triton."""
    if choice == "string_param":
        if len(value) > _MAX_SEQUENCE_ID:
            raise InvalidArgument(f"parameter {key!r} has {len(value)} characters; up to {_MAX_SEQUENCE_ID} are taken")
        return str(value)
    if choice not in ("int64_param", "uint64_param"):
        raise InvalidArgument(f"parameter {key!r} is given as {choice}; it is taken as a whole number or a text")
    return unsigned(key, choice, value)


def unsigned(key: str, choice: str, value: Any) -> int:
    number = _of_type(key, choice, value, "int64_param", "uint64_param")
    if number < 0:
        raise InvalidArgument(f"parameter {key!r} is {number}; it cannot be negative")
    return int(number)


def _of_type(key: str, choice: str, value: Any, *allowed: str) -> Any:
    if choice not in allowed:
        raise InvalidArgument(f"parameter {key!r} is given as {choice}; it is taken as {' or '.join(allowed)}")
    return value
