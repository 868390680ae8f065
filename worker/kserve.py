"""ModelInferRequest to arrays and back: what Triton's server checks, checked here.

A codec: generated messages on one side, arrays and small dataclasses on the other. Never runs anything. Every refusal is an
InvalidArgument (or Unimplemented) that names what was seen and what is taken. Source: Triton's grpc infer handler and
`inference_request.cc` for the rules; the sentences are ours.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from inference import grpc_service_pb2

from runtime.errors import InvalidArgument, Unimplemented
from worker.classification import top_classes
from worker.datatypes import DATATYPES, Datatype
from worker.engine import Array
from worker.tensors import check_utf8, from_raw, from_typed, to_raw
from worker.types import ModelSpec, TensorSpec

_MAX_DIMENSION = 2**40
_MAX_SEQUENCE_ID = 128  # characters; Triton's STRING_CORRELATION_ID_MAX_LENGTH_BYTES
_LAYOUTS, _LAYOUT_BYTES = 256, 1024
"""How many layouts a model remembers, and the largest that it does."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to answer with. `classes` > 0: its most likely classes instead of its values."""

    index: int
    spec: TensorSpec
    classes: int = 0


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


_NO_PARAMETERS = Parameters()


@dataclass(slots=True)
class TensorRequest:
    """A request that a model of this spec can take. Not frozen, because one is made for every request: a third of the time."""

    request_id: str
    inputs: Mapping[str, Array]
    rows: int
    shape: object
    """Equal for requests whose inputs can be put under each other."""
    outputs: Sequence[RequestedOutput]
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Layout:
    """Inputs that were found to fit the model: name, datatype and shape of each, and the rows that they share."""

    tensors: tuple[tuple[str, Datatype, tuple[int, ...]], ...]
    rows: int
    shape: object


def parse(payload: bytes) -> grpc_service_pb2.ModelInferRequest:
    """Raises InvalidArgument for bytes that are no such message."""
    try:
        return grpc_service_pb2.ModelInferRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(
            f"the {len(payload)} bytes received are no inference.ModelInferRequest; generate the client from this protocol"
        ) from error


class RequestCodec:
    """The codec of one model. Holds what does not change between its requests."""

    def __init__(self, spec: ModelSpec, *, utf8_bytes: bool = False) -> None:
        self._spec = spec
        self._utf8_bytes = utf8_bytes
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._required = frozenset(tensor.name for tensor in spec.inputs if not tensor.optional)
        self._outputs = {tensor.name: (index, tensor) for index, tensor in enumerate(spec.outputs)}
        self._all_outputs = tuple(RequestedOutput(index, tensor) for index, tensor in enumerate(spec.outputs))
        self._layouts: dict[bytes, Layout] = {}
        self._template = grpc_service_pb2.ModelInferResponse(model_name=spec.model, model_version=spec.version)

    def decode(self, request: grpc_service_pb2.ModelInferRequest) -> TensorRequest:
        """Check everything before anything runs. Raises InvalidArgument, Unimplemented."""
        parameters = parameters_of(request.parameters) if request.parameters else _NO_PARAMETERS
        outputs = self._requested(request.outputs) if request.outputs else self._all_outputs
        raws = request.raw_input_contents
        if raws:
            layout = self._known_layout(request)
            if len(raws) != len(layout.tensors):
                raise InvalidArgument(
                    f"the request has {len(layout.tensors)} inputs and {len(raws)} raw_input_contents; send one for each input"
                )
            inputs = {
                name: from_raw(raw, datatype, shape, name)
                for (name, datatype, shape), raw in zip(layout.tensors, raws, strict=True)
            }
        else:
            layout = self._layout(request)
            inputs = {
                name: _typed(tensor, datatype, shape)
                for (name, datatype, shape), tensor in zip(layout.tensors, request.inputs, strict=True)
            }
        if self._utf8_bytes:
            for name, datatype, _ in layout.tensors:
                if not datatype.size_bytes:
                    check_utf8(inputs[name], name)
        return TensorRequest(request.id, inputs, layout.rows, layout.shape, outputs, parameters)

    def response(
        self, request_id: str, requested: Sequence[RequestedOutput], arrays: Sequence[Array]
    ) -> grpc_service_pb2.ModelInferResponse:
        """The answer, in `raw_output_contents`: Triton's clients read typed contents only for BYTES."""
        response = grpc_service_pb2.ModelInferResponse()
        response.CopyFrom(self._template)
        response.id = request_id
        for output in requested:
            array, datatype = arrays[output.index], output.spec.datatype
            if output.classes:
                array = top_classes(array, output.spec, output.classes, batched=self._spec.max_batch_size > 0)
                datatype = "BYTES"
            response.outputs.add(name=output.spec.name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(to_raw(array))
        return response

    def _known_layout(self, request: grpc_service_pb2.ModelInferRequest) -> Layout:
        """The layout, from memory where the same was checked before: most requests of a client are laid out alike."""
        key = b"".join([tensor.SerializeToString() for tensor in request.inputs])
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layout(request)
            for tensor in request.inputs:
                if tensor.HasField("contents") and tensor.contents.ListFields():
                    raise InvalidArgument(
                        f"input {tensor.name!r} has data in both contents and raw_input_contents; send it in one of them"
                    )
            if len(key) <= _LAYOUT_BYTES:
                if len(self._layouts) >= _LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = layout
        return layout

    def _layout(self, request: grpc_service_pb2.ModelInferRequest) -> Layout:
        """Check names, datatypes and shapes."""
        tensors: dict[str, tuple[str, Datatype, tuple[int, ...]]] = {}
        rows = 0
        for tensor in request.inputs:
            spec = self._input(tensor, tensors)
            shape = tuple(tensor.shape)
            rows = self._rows(spec, shape, rows)
            tensors[spec.name] = (spec.name, DATATYPES[spec.datatype], shape)
        if missing := self._required - tensors.keys():
            raise InvalidArgument(
                f"request for model {self._spec.model!r} lacks inputs {sorted(missing)}; it has {sorted(tensors)}"
            )
        own = tuple(sorted((name, shape[1:]) for name, _, shape in tensors.values()))
        return Layout(tuple(tensors.values()), rows or 1, own)

    def _input(self, tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, seen: Container[str]) -> TensorSpec:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise InvalidArgument(
                f"unexpected inference input {tensor.name!r} for model {self._spec.model!r};"
                f" its inputs are {sorted(self._inputs)}"
            )
        if tensor.name in seen:
            raise InvalidArgument(f"input {tensor.name!r} is given twice; send each input once")
        if tensor.parameters and any(key.startswith("shared_memory") for key in tensor.parameters):
            raise Unimplemented(f"input {tensor.name!r} is in shared memory, which this server does not map; send its bytes")
        if tensor.datatype != spec.datatype:
            raise InvalidArgument(
                f"input {tensor.name!r} of model {self._spec.model!r} has datatype {tensor.datatype!r};"
                f" expected {spec.datatype}"
            )
        return spec

    def _rows(self, spec: TensorSpec, shape: tuple[int, ...], rows_before: int) -> int:
        """The batch dimension of this input, which every input shares; 1 where the model has none."""
        batched = self._spec.max_batch_size > 0
        own = shape[1:] if batched else shape
        if len(shape) != len(spec.shape) + batched or any(
            want not in (have, -1) or not 0 <= have < _MAX_DIMENSION for want, have in zip(spec.shape, own, strict=True)
        ):
            expected = list(((-1,) if batched else ()) + spec.shape)
            raise InvalidArgument(
                f"input {spec.name!r} of model {self._spec.model!r} has shape {list(shape)}; expected {expected}"
                + (f", the first dimension being 1 to {self._spec.max_batch_size} rows" if batched else "")
            )
        if not batched:
            return 1
        rows = shape[0]
        if not 1 <= rows <= self._spec.max_batch_size:
            raise InvalidArgument(
                f"input {spec.name!r} has {rows} rows; model {self._spec.model!r} takes 1 to"
                f" {self._spec.max_batch_size} in a request"
            )
        if rows_before and rows != rows_before:
            raise InvalidArgument(
                f"input {spec.name!r} has {rows} rows where another input has {rows_before}; send as many in each"
            )
        return rows

    def _requested(
        self, requested: Sequence[grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor]
    ) -> tuple[RequestedOutput, ...]:
        outputs: dict[str, RequestedOutput] = {}
        for output in requested:
            if output.name not in self._outputs:
                raise InvalidArgument(
                    f"unexpected inference output {output.name!r} for model {self._spec.model!r};"
                    f" its outputs are {sorted(self._outputs)}"
                )
            if output.name in outputs:
                raise InvalidArgument(f"output {output.name!r} is requested twice; ask for each output once")
            index, spec = self._outputs[output.name]
            outputs[output.name] = RequestedOutput(index, spec, _classes(output.parameters, spec) if output.parameters else 0)
        return tuple(outputs.values())


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
            priority = _unsigned(key, choice, value)
        elif key == "timeout":
            timeout_us = _unsigned(key, choice, value)
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
    return _unsigned(key, choice, value)


def _unsigned(key: str, choice: str, value: Any) -> int:
    number = _of_type(key, choice, value, "int64_param", "uint64_param")
    if number < 0:
        raise InvalidArgument(f"parameter {key!r} is {number}; it cannot be negative")
    return int(number)


def _of_type(key: str, choice: str, value: Any, *allowed: str) -> Any:
    if choice not in allowed:
        raise InvalidArgument(f"parameter {key!r} is given as {choice}; it is taken as {' or '.join(allowed)}")
    return value


def _classes(parameters: Mapping[str, grpc_service_pb2.InferParameter], spec: TensorSpec) -> int:
    """The `classification` extension's parameter; 0 = the values themselves."""
    if any(key.startswith("shared_memory") for key in parameters):
        raise Unimplemented(
            f"output {spec.name!r} is asked for in shared memory, which this server does not map; take its bytes"
        )
    if "classification" not in parameters:
        return 0
    parameter = parameters["classification"]
    choice = parameter.WhichOneof("parameter_choice") or "nothing"
    count = _unsigned("classification", choice, getattr(parameter, choice, None))
    if count and spec.datatype == "BYTES":
        raise InvalidArgument(f"output {spec.name!r} is BYTES, which has no classes; ask for it without 'classification'")
    return count


def _typed(tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, datatype: Datatype, shape: tuple[int, ...]) -> Array:
    if not datatype.contents:
        raise InvalidArgument(
            f"input {tensor.name!r} is {datatype.name}, which travels in raw_input_contents only; it has none"
        )
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if any(field != datatype.contents for field in fields):
        raise InvalidArgument(
            f"input {tensor.name!r} has data in {', '.join(fields)}; {datatype.name} goes into {datatype.contents}"
        )
    return from_typed(getattr(tensor.contents, datatype.contents), datatype, shape, tensor.name)
