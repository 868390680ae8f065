"""`penstock infer`: one KServe request, from a picture or from values, and its answer as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import numpy.typing as npt
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from rich.console import Console
from rich.table import Table

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import InvalidArgument

_DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}
TIMEOUT_S = 60.0
_Metadata = grpc_service_pb2.ModelMetadataResponse.TensorMetadata


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model: a picture, or values for its inputs as NAME=JSON."""

    model: str
    version: str = ""
    """Empty: what requests mostly get."""
    image: Path | None = None
    values: tuple[str, ...] = ()
    top: int = 3
    """Classes to show of a picture."""


async def infer_once(profile: Profile, question: Question) -> None:
    """Ask the model what it takes, send that, print what comes."""
    async with profile.gateway_channel() as channel:
        request = await request_for(channel, profile, question)
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        response = await stub.ModelInfer(request, metadata=profile.metadata, timeout=TIMEOUT_S)
    show(response, question)


async def request_for(channel: grpc.aio.Channel, profile: Profile, question: Question) -> grpc_service_pb2.ModelInferRequest:
    """The question in the model's own terms, for which its name and version are sent, and nothing else."""
    stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
    ask = grpc_service_pb2.ModelMetadataRequest(name=question.model, version=question.version)
    metadata = await stub.ModelMetadata(ask, metadata=profile.metadata, timeout=TIMEOUT_S)
    request = grpc_service_pb2.ModelInferRequest(model_name=question.model, model_version=question.version)
    if question.image is not None:
        _add_image(request, metadata, question.image, question.top)
    for value in question.values:
        _add_value(request, metadata, value)
    return request


def show(response: grpc_service_pb2.ModelInferResponse, question: Question) -> None:
    """The answer, for people."""
    _show(console(), response, classes=question.image is not None)


def image_tensor(file: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A picture as float32 [1, 1, H, W] with values 0..1: grey, shrunk by area to the model's H × W."""
    from PIL import Image, UnidentifiedImageError

    height, width = shape[-2:]
    try:
        with Image.open(file) as picture:
            grey = picture.convert("L").resize((width, height), Image.Resampling.BOX)
    except FileNotFoundError as error:
        raise InvalidArgument(f"there is no file {file}") from error
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidArgument(f"{file} is not a picture that can be read: {error}") from error
    return (np.asarray(grey, dtype=np.float32) / 255.0).reshape(1, 1, height, width)


def tensor_of(name: str, datatype: str, value: object) -> tuple[tuple[int, ...], bytes]:
    """Shape and raw bytes of a JSON value, as KServe's raw contents have them."""
    if datatype == "BYTES":
        texts = np.asarray(value, dtype=object)
        encoded = [str(text).encode() for text in texts.reshape(-1)]
        return texts.shape or (1,), b"".join(len(text).to_bytes(4, "little") + text for text in encoded)
    if datatype not in _DTYPES:
        raise InvalidArgument(f"input {name} is {datatype}, which cannot be written as JSON here")
    try:
        array = np.atleast_1d(np.asarray(value, dtype=_DTYPES[datatype]))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"input {name} needs {datatype} numbers in lists of equal length: {error}") from error
    return array.shape, array.tobytes()


def _add_image(
    request: grpc_service_pb2.ModelInferRequest,
    metadata: grpc_service_pb2.ModelMetadataResponse,
    image: Path,
    top: int,
) -> None:
    target = next((tensor for tensor in metadata.inputs if len(tensor.shape) == 4 and tensor.datatype == "FP32"), None)
    if target is None or min(target.shape[-2:]) < 1:
        raise InvalidArgument(f"{metadata.name} takes no picture; its inputs are: {_described(metadata)}")
    tensor = image_tensor(image, tuple(target.shape))
    request.inputs.add(name=target.name, datatype="FP32", shape=tensor.shape)
    request.raw_input_contents.append(tensor.tobytes())
    for output in metadata.outputs:
        request.outputs.add(name=output.name).parameters["classification"].int64_param = top


def _add_value(
    request: grpc_service_pb2.ModelInferRequest, metadata: grpc_service_pb2.ModelMetadataResponse, value: str
) -> None:
    name, equals, text = value.partition("=")
    target = next((tensor for tensor in metadata.inputs if tensor.name == name), None)
    if not equals or target is None:
        raise InvalidArgument(f"--input {value!r}: write NAME=JSON; the inputs are: {_described(metadata)}")
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"--input {name}: {text!r} is not JSON: {error}") from error
    shape, raw = tensor_of(name, target.datatype, parsed)
    request.inputs.add(name=name, datatype=target.datatype, shape=shape)
    request.raw_input_contents.append(raw)


def _described(metadata: grpc_service_pb2.ModelMetadataResponse) -> str:
    return ", ".join(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}" for tensor in metadata.inputs) or "none"


def _show(terminal: Console, response: grpc_service_pb2.ModelInferResponse, *, classes: bool) -> None:
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if classes and output.datatype == "BYTES":
            terminal.print(class_table(response.model_name, strings_of(raw)))
            continue
        values = strings_of(raw) if output.datatype == "BYTES" else np.frombuffer(raw, _DTYPES[output.datatype]).tolist()
        shape = ", ".join(str(size) for size in output.shape)
        terminal.print(f"[bold]{output.name}[/] {output.datatype} ({shape})")
        terminal.print(np.asarray(values, dtype=object).reshape(tuple(output.shape)).tolist())


def class_table(model: str, entries: list[str]) -> Table:
    """Triton's `score:index[:label]` strings, best first, as a table."""
    rows = table("class", "score", title=f"{model} says")
    for place, entry in enumerate(entries):
        score, _, rest = entry.partition(":")
        index, _, label = rest.partition(":")
        rows.add_row(label or index, f"{float(score):.3f}", style="bold green" if place == 0 else "")
    return rows


def strings_of(raw: bytes) -> list[str]:
    """Elements of a BYTES tensor: each a 4-byte little-endian length and that many bytes."""
    found, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : at + 4 + size].decode(errors="replace"))
        at += 4 + size
    return found
