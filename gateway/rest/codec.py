"""Inference requests: HTTP bodies to the protocol's messages. Binary tensors are copied once, into the message that leaves.

Source: Open Inference Protocol (HTTP/REST), "Inference Request JSON Object"; Triton's protocol/extension_binary_data.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inference import grpc_service_pb2 as kserve

from gateway.rest.envelope import field_of
from gateway.rest.errors import RequestRefused
from gateway.rest.fields import (
    MAX_ENTRIES,
    Fields,
    checked_text,
    entries,
    flag,
    inner,
    kind_of,
    object_of,
    text,
    wrong,
)
from gateway.rest.tensors import DTYPES, element_count, raw_of, with_length
from gateway.rest.types import HEADER_LENGTH, InferAsked, Part, TensorShape
from gateway.wire import Parameter, RequestHead

_RAW_INPUTS = 7
_MAX_DIMENSION = 2**63 - 1
_SHARED = "shared_memory_region"
_BINARY, _BINARY_SIZE, _BINARY_OUTPUTS = "binary_data", "binary_data_size", "binary_data_output"
_Input = kserve.ModelInferRequest.InferInputTensor


def infer_asked(model: str, version: str, body: memoryview, header_length: int | None) -> InferAsked:
    """Raises RequestRefused, BodyTooLarge. `header_length`: how much of the body is JSON; None: all of it."""
    if header_length is not None and header_length > len(body):
        raise RequestRefused(f"{HEADER_LENGTH} is {header_length}, the body has {len(body)} bytes; send the length of its JSON")
    split = len(body) if header_length is None else header_length
    asked, rest = object_of(body[:split]), body[split:]
    message = kserve.ModelInferRequest(model_name=model, model_version=version, id=text(asked, "id"))
    all_binary = _parameters(message, inner(asked, "parameters"))
    inputs = entries(asked, "inputs")
    if not inputs:
        raise RequestRefused("'inputs' is missing or empty; send each input's name, shape, datatype and data")
    raws: list[Part] = []
    for place, one in enumerate(inputs):
        rest = _input(message.inputs.add(), one, f"inputs[{place}].", rest, raws)
    if rest:
        raise RequestRefused(
            f"{len(rest)} bytes follow the binary data of all inputs; say binary_data_size of each that has some"
        )
    binary = {name: wish for name, wish in _outputs(message, entries(asked, "outputs")) if wish is not None}
    return InferAsked(_head(message), _payload(message, raws), binary, all_binary)


def raw_asked(model: str, version: str, body: memoryview, tensor: TensorShape) -> InferAsked:
    """A body that is nothing but the one input's bytes, with the shape that these say. Raises RequestRefused."""
    message = kserve.ModelInferRequest(model_name=model, model_version=version)
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:  # the body is one element, whatever it holds
        shape = tuple(1 if each == -1 else each for each in tensor.shape)
        raws: Sequence[Part] = with_length(body)
        count = 1
    else:
        count, left = divmod(len(body), dtype.itemsize)
        shape = _shape_of(tensor.shape, count)
        raws = (body,)
        if left:
            count = -1
    if element_count(shape) != count or not count:
        raise RequestRefused(
            f"{len(body)} bytes do not make a {tensor.datatype} tensor of shape {list(tensor.shape)}, which input"
            f" {tensor.name!r} of model {model!r} has; send its shape as JSON before the bytes"
        )
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
    content = raws[0] if len(raws) == 1 else b"".join(raws)
    return InferAsked(_head(message), _payload(message, [content]), {}, all_binary=True)


def signature_of(metadata: kserve.ModelMetadataResponse) -> list[TensorShape]:
    """What a model takes."""
    return [TensorShape(each.name, each.datatype, tuple(each.shape)) for each in metadata.inputs]


def _parameters(message: kserve.ModelInferRequest, parameters: Fields) -> bool:
    """Put them into the message; whether all outputs are wanted as bytes, which is said among them."""
    if len(parameters) > MAX_ENTRIES:
        raise RequestRefused(f"'parameters' has {len(parameters)} entries; at most {MAX_ENTRIES} are taken")
    for name, value in parameters.items():
        if name != _BINARY_OUTPUTS:
            message.parameters[checked_text(name, "parameters")].CopyFrom(_value(value, f"parameters.{name}"))
    return flag(parameters, _BINARY_OUTPUTS, "parameters.")


def _input(tensor: _Input, one: Fields, path: str, rest: memoryview, raws: list[Part]) -> memoryview:
    """Fill in one input, and put its bytes to the others; what is left of the binary data."""
    tensor.name, tensor.datatype = _named(one, path), text(one, "datatype", path)
    if tensor.datatype not in DTYPES:
        raise RequestRefused(f"{path + 'datatype'!r} is {tensor.datatype[:40]!r}; there are: {', '.join(DTYPES)}")
    tensor.shape.extend(_shape(one, path))
    parameters, size = inner(one, "parameters", path), None
    for name, value in parameters.items():
        if name == _BINARY_SIZE:
            size = _size(value, path + "parameters." + name)
        else:
            tensor.parameters[checked_text(name, path)].CopyFrom(_value(value, f"{path}parameters.{name}"))
    if size is not None:
        if "data" in one:
            raise RequestRefused(f"input {tensor.name!r} has both 'data' and {_BINARY_SIZE}; send its data in one place")
        if size > len(rest):
            raise RequestRefused(
                f"input {tensor.name!r} says {_BINARY_SIZE} {size}; {len(rest)} bytes of the body are left for it"
            )
        raws.append(rest[:size])
        return rest[size:]
    if _SHARED not in tensor.parameters:  # a worker refuses those that have it, in its own words
        if "data" not in one:
            raise RequestRefused(f"input {tensor.name!r} has no data; send 'data', or binary data and its binary_data_size")
        raws.append(raw_of(one["data"], tensor.datatype, tensor.shape, tensor.name))
    return rest


def _outputs(message: kserve.ModelInferRequest, outputs: Sequence[Fields]) -> Iterator[tuple[str, bool | None]]:
    """Put them into the message; each with whether it is wanted as bytes, None where that is not said."""
    for place, one in enumerate(outputs):
        path = f"outputs[{place}]."
        output, wish = message.outputs.add(name=_named(one, path)), None
        for name, value in inner(one, "parameters", path).items():
            if name == _BINARY:
                wish = flag({name: value}, name, path + "parameters.")
            else:
                output.parameters[checked_text(name, path)].CopyFrom(_value(value, f"{path}parameters.{name}"))
        yield output.name, wish


def _value(value: object, path: str) -> kserve.InferParameter:
    """A parameter by the kind that JSON shows."""
    if isinstance(value, bool):
        return kserve.InferParameter(bool_param=value)
    if isinstance(value, int):
        if -(2**63) <= value < 2**63:
            return kserve.InferParameter(int64_param=value)
        if value < 2**64:
            return kserve.InferParameter(uint64_param=value)
        raise RequestRefused(f"{path[:80]!r} is a number of more than 64 bits; send a smaller one")
    if isinstance(value, float):
        return kserve.InferParameter(double_param=value)
    if isinstance(value, str):
        return kserve.InferParameter(string_param=checked_text(value, path))
    return wrong(path, value, "a string, a number or a boolean")


def _named(one: Fields, path: str) -> str:
    name = text(one, "name", path)
    return name or wrong(path + "name", one.get("name"), "a name")


def _shape(one: Fields, path: str) -> list[int]:
    shape = one.get("shape")
    if not isinstance(shape, list):
        wrong(path + "shape", shape, "an array of integers")
    for each in shape:
        if not isinstance(each, int) or isinstance(each, bool) or not 0 <= each <= _MAX_DIMENSION:
            shown = each if isinstance(each, int) and abs(each) < 10**30 else kind_of(each)
            raise RequestRefused(f"{path + 'shape'!r} holds {shown}; dimensions are integers from 0")
    return shape


def _size(value: object, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        wrong(path, value, "a number of bytes")
    return value


def _shape_of(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """The shape of so many elements: the last variable dimension is what it has to be, others before it are 1."""
    variable = [place for place, each in enumerate(shape) if each == -1]
    found = [1 if each == -1 else each for each in shape]
    if variable and (others := element_count(found)):
        found[variable[0] if len(variable) == 1 else variable[-1]] = count // others
    return tuple(found)


def _head(message: kserve.ModelInferRequest) -> RequestHead:
    """As `gateway.wire.head_of` reads it from the payload."""
    found: dict[str, Parameter] = {}
    for name, parameter in message.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        found[name] = getattr(parameter, choice) if choice is not None else ""
    return RequestHead(message.model_name, message.model_version, message.id, found)


def _payload(message: kserve.ModelInferRequest, raws: Sequence[Part]) -> bytes:
    """The message with its tensors, put together once."""
    parts: list[Part] = [message.SerializeToString()]
    for raw in raws:
        parts += field_of(_RAW_INPUTS, raw)
    return b"".join(parts)
