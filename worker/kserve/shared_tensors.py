"""The shared-memory parameters of a request's tensors: where an input lies, where an output goes.

A codec. Which regions there are is `shared_memory.py`'s. Source: Triton's extension_shared_memory.md for the names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference import grpc_service_pb2

from runtime.errors import InvalidArgument, Unimplemented
from worker.types import SharedRegion, SharedRegions

_PREFIX = "shared_memory"
_REGION, _BYTE_SIZE, _OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"

Parameters = Mapping[str, grpc_service_pb2.InferParameter]


@dataclass(frozen=True, slots=True)
class Place:
    """A part of a region, held so that it stays while the request runs."""

    name: str
    region: SharedRegion
    offset: int
    byte_size: int

    def read(self) -> memoryview:
        return self.region.read(self.offset, self.byte_size)

    def write(self, content: memoryview, output: str) -> None:
        """Put the output's bytes there. Raises InvalidArgument where they do not fit."""
        if len(content) > self.byte_size:
            raise InvalidArgument(
                f"output {output!r} takes {len(content)} bytes; the {self.byte_size} of shared memory that the request gives it"
                " are too few"
            )
        if content:
            self.region.write(self.offset, content)

    def tell(self, parameters: Any, written: int) -> None:
        """Say in an output's parameters where it is."""
        parameters[_REGION].string_param = self.name
        parameters[_BYTE_SIZE].int64_param = written
        if self.offset:
            parameters[_OFFSET].int64_param = self.offset


def in_shared_memory(parameters: Parameters) -> bool:
    return any(key.startswith(_PREFIX) for key in parameters)


def place_of(parameters: Parameters, what: str, memory: SharedRegions | None) -> Place | None:
    """Where the tensor `what` is, None where it travels in the message. Raises InvalidArgument, NotFound, Unimplemented."""
    if not in_shared_memory(parameters):
        return None
    if memory is None:
        raise Unimplemented(f"{what} is in shared memory, which this server does not open here; send and take its bytes")
    if unknown := sorted(key for key in parameters if key.startswith(_PREFIX) and key not in (_REGION, _BYTE_SIZE, _OFFSET)):
        raise InvalidArgument(f"{what} has parameter {unknown[0]!r}; known are {_REGION}, {_BYTE_SIZE} and {_OFFSET}")
    name = _value(parameters, _REGION, "string_param", what)
    byte_size = _value(parameters, _BYTE_SIZE, "int64_param", what)
    offset = _value(parameters, _OFFSET, "int64_param", what) if _OFFSET in parameters else 0
    region = memory.region(name)
    if byte_size < 0 or offset < 0 or offset + byte_size > region.byte_size:
        raise InvalidArgument(
            f"{what} is said to take {byte_size} bytes from {offset} on of shared memory region {name!r}, which has"
            f" {region.byte_size}"
        )
    return Place(name, region, offset, byte_size)


def _value(parameters: Parameters, key: str, kind: str, what: str) -> Any:
    if key not in parameters or parameters[key].WhichOneof("parameter_choice") != kind:
        raise InvalidArgument(f"{what} is in shared memory; that takes parameter {key!r} as {kind}")
    return getattr(parameters[key], kind)
