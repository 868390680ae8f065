"""ModelInferRequest to arrays and back: what Triton's server checks, checked here.

A codec: generated messages on one side, arrays and small dataclasses on the other. Never runs anything. Every refusal is an
InvalidArgument (or Unimplemented) that names what was seen and what is taken. Source: Triton's grpc infer handler and
`inference_request.cc` for the rules; the sentences are ours.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from inference import grpc_service_pb2

from runtime.errors import InvalidArgument
from worker.datatypes import DATATYPES, Datatype
from worker.engine import Array
from worker.kserve.classification import top_classes
from worker.kserve.parameters import Parameters, SequenceMark, parameters_of, unsigned
from worker.kserve.shared_tensors import Place, in_shared_memory, place_of
from worker.tensors import bytes_of, check_utf8, element_count, from_raw, from_typed, to_raw
from worker.types import ModelSpec, SharedRegions, TensorSpec

__all__ = [
    "Parameters",
    "RequestCodec",
    "RequestedOutput",
    "SequenceMark",
    "TensorRequest",
    "parameters_of",
    "parse",
    "streamed",
]

_MAX_DIMENSION = 2**40
_MAX_NUMPY_DIMENSIONS = 32
_INFER_RESPONSE_TAG = b"\x12"  # field 2 of ModelStreamInferResponse, length-delimited
_LAYOUTS, _LAYOUT_BYTES = 256, 1024
"""How many layouts a model remembers, and the largest that it does."""


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output to answer with. `classes` > 0: its most likely classes instead of its values."""

    index: int
    spec: TensorSpec
    classes: int = 0
    place: Place | None = None
    """Where its bytes go instead of into the message."""


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
class InputLayout:
    """One input that was found to fit the model."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    viewed_bytes: int
    """How many raw bytes an array can be a view of; -1 where they have to be looked at one by one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Inputs that were found to fit the model, and the rows that they share."""

    tensors: tuple[InputLayout, ...]
    rows: int
    shape: object
    checks_utf8: bool


def parse(payload: bytes) -> grpc_service_pb2.ModelInferRequest:
    """Raises InvalidArgument for bytes that are no such message."""
    try:
        return grpc_service_pb2.ModelInferRequest.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(
            f"the {len(payload)} bytes received are no inference.ModelInferRequest; generate the client from this protocol"
        ) from error


def streamed(response: grpc_service_pb2.ModelInferResponse) -> bytes:
    """A serialised ModelStreamInferResponse that holds this one: its field 2, put together without copying the message."""
    content = response.SerializeToString()
    head, size = bytearray(_INFER_RESPONSE_TAG), len(content)
    while size > 127:  # a varint: seven bits to a byte, the lowest first
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + content


class RequestCodec:
    """The codec of one model. Holds what does not change between its requests."""

    def __init__(self, spec: ModelSpec, *, utf8_bytes: bool = False) -> None:
        self._spec = spec
        self._utf8_bytes = utf8_bytes
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._required = frozenset(tensor.name for tensor in spec.inputs if not tensor.optional)
        self._outputs = {tensor.name: (index, tensor) for index, tensor in enumerate(spec.outputs)}
        self._all_outputs = tuple(RequestedOutput(index, tensor) for index, tensor in enumerate(spec.outputs))
        self._layouts: dict[bytes | tuple[bytes, ...], Layout] = {}
        self._template = grpc_service_pb2.ModelInferResponse(model_name=spec.model, model_version=spec.version)

    def decode(self, request: grpc_service_pb2.ModelInferRequest, memory: SharedRegions | None = None) -> TensorRequest:
        """Check everything before anything runs. Raises InvalidArgument, Unimplemented, and NotFound for shared memory."""
        parameters = parameters_of(request.parameters) if request.parameters else _NO_PARAMETERS
        outputs = self._requested(request.outputs, memory) if request.outputs else self._all_outputs
        tensors, raws = request.inputs, request.raw_input_contents
        if memory is not None and any(in_shared_memory(tensor.parameters) for tensor in tensors):
            layout = self._layout(request, memory)
            inputs = _partly_shared(layout, request, memory)
        elif raws:
            layout = self._known_layout(request)
            if len(raws) != len(layout.tensors):
                raise InvalidArgument(
                    f"the request has {len(layout.tensors)} inputs and {len(raws)} raw_input_contents; send one for each input"
                )
            inputs = {}
            for index, known in enumerate(layout.tensors):  # protobuf's own iterators take four times as long
                raw = raws[index]
                inputs[known.name] = (
                    np.ndarray(known.shape, known.datatype.dtype, raw)
                    if len(raw) == known.viewed_bytes
                    else from_raw(raw, known.datatype, known.shape, known.name)
                )
        else:
            layout = self._layout(request)
            inputs = {known.name: _typed(tensor, known) for known, tensor in zip(layout.tensors, tensors, strict=True)}
        if layout.checks_utf8:
            for known in layout.tensors:
                if not known.datatype.size_bytes:
                    check_utf8(inputs[known.name], known.name)
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
            tensor = response.outputs.add(name=output.spec.name, datatype=datatype, shape=array.shape)
            if output.place is None:
                response.raw_output_contents.append(to_raw(array))
            else:
                content = bytes_of(array)
                output.place.write(content, output.spec.name)
                output.place.tell(tensor.parameters, len(content))
                response.raw_output_contents.append(b"")
        return response

    def _known_layout(self, request: grpc_service_pb2.ModelInferRequest) -> Layout:
        """The layout, from memory where the same was checked before: most requests of a client are laid out alike."""
        tensors = request.inputs
        one = len(tensors) == 1
        key = tensors[0].SerializeToString() if one else tuple([tensor.SerializeToString() for tensor in tensors])
        layout = self._layouts.get(key)
        if layout is None:
            layout = self._layout(request)
            for tensor in request.inputs:
                if tensor.HasField("contents") and tensor.contents.ListFields():
                    raise InvalidArgument(
                        f"input {tensor.name!r} has data in both contents and raw_input_contents; send it in one of them"
                    )
            if sum(tensor.ByteSize() for tensor in tensors) <= _LAYOUT_BYTES:
                if len(self._layouts) >= _LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = layout
        return layout

    def _layout(self, request: grpc_service_pb2.ModelInferRequest, memory: SharedRegions | None = None) -> Layout:
        """Check names, datatypes and shapes, and that nothing lies in shared memory where there is none."""
        tensors: dict[str, InputLayout] = {}
        rows = 0
        for tensor in request.inputs:
            spec = self._input(tensor, tensors)
            if memory is None and tensor.parameters:
                place_of(tensor.parameters, f"input {tensor.name!r}", memory)
            shape = tuple(tensor.shape)
            rows = self._rows(spec, shape, rows)
            tensors[spec.name] = _input_layout(spec, shape)
        if missing := self._required - tensors.keys():
            raise InvalidArgument(
                f"request for model {self._spec.model!r} lacks inputs {sorted(missing)}; it has {sorted(tensors)}"
            )
        own = tuple(sorted((known.name, known.shape[1:]) for known in tensors.values()))
        checks_utf8 = self._utf8_bytes and any(not known.datatype.size_bytes for known in tensors.values())
        return Layout(tuple(tensors.values()), rows or 1, own, checks_utf8)

    def _input(self, tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, seen: Container[str]) -> TensorSpec:
        spec = self._inputs.get(tensor.name)
        if spec is None:
            raise InvalidArgument(
                f"unexpected inference input {tensor.name!r} for model {self._spec.model!r};"
                f" its inputs are {sorted(self._inputs)}"
            )
        if tensor.name in seen:
            raise InvalidArgument(f"input {tensor.name!r} is given twice; send each input once")
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
        self,
        requested: Sequence[grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor],
        memory: SharedRegions | None,
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
            outputs[output.name] = RequestedOutput(index, spec)
            if output.parameters:
                place = place_of(output.parameters, f"output {output.name!r}", memory)
                outputs[output.name] = RequestedOutput(index, spec, _classes(output.parameters, spec), place)
        return tuple(outputs.values())


def _classes(parameters: Mapping[str, grpc_service_pb2.InferParameter], spec: TensorSpec) -> int:
    """The `classification` extension's parameter; 0 = the values themselves."""
    if "classification" not in parameters:
        return 0
    parameter = parameters["classification"]
    choice = parameter.WhichOneof("parameter_choice") or "nothing"
    count = unsigned("classification", choice, getattr(parameter, choice, None))
    if count and spec.datatype == "BYTES":
        raise InvalidArgument(f"output {spec.name!r} is BYTES, which has no classes; ask for it without 'classification'")
    return count


def _input_layout(spec: TensorSpec, shape: tuple[int, ...]) -> InputLayout:
    datatype = DATATYPES[spec.datatype]
    size_bytes = element_count(shape) * datatype.size_bytes
    viewed = size_bytes and len(shape) <= _MAX_NUMPY_DIMENSIONS and datatype.name != "BOOL"  # which from_raw normalises
    return InputLayout(spec.name, datatype, shape, size_bytes if viewed else -1)


def _partly_shared(layout: Layout, request: grpc_service_pb2.ModelInferRequest, memory: SharedRegions) -> Mapping[str, Array]:
    """Inputs of which some lie in shared memory; `raw_input_contents` counts only the others."""
    raws = list(request.raw_input_contents)
    inputs: dict[str, Array] = {}
    sent = 0
    for known, tensor in zip(layout.tensors, request.inputs, strict=True):
        place = place_of(tensor.parameters, f"input {known.name!r}", memory)
        if place is not None:
            inputs[known.name] = from_raw(place.read(), known.datatype, known.shape, known.name)
        elif not raws:
            inputs[known.name] = _typed(tensor, known)
        elif sent < len(raws):
            inputs[known.name] = from_raw(raws[sent], known.datatype, known.shape, known.name)
            sent += 1
        else:
            raise InvalidArgument(f"input {known.name!r} has no data; {len(raws)} raw_input_contents are used up before it")
    if sent != len(raws):
        raise InvalidArgument(
            f"the request has {len(raws)} raw_input_contents and {sent} inputs that are not in shared memory; send one for each"
        )
    return inputs


def _typed(tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, known: InputLayout) -> Array:
    datatype = known.datatype
    if not datatype.contents:
        raise InvalidArgument(
            f"input {tensor.name!r} is {datatype.name}, which travels in raw_input_contents only; it has none"
        )
    fields = [field.name for field, _ in tensor.contents.ListFields()]
    if any(field != datatype.contents for field in fields):
        raise InvalidArgument(
            f"input {tensor.name!r} has data in {', '.join(fields)}; {datatype.name} goes into {datatype.contents}"
        )
    return from_typed(getattr(tensor.contents, datatype.contents), datatype, known.shape, tensor.name)
