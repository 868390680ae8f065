"""Finds out which model a request is for, from as little of it as will do.

Pure. KServe over gRPC says it in the first fields of its first message, OIP REST in the path, OpenAI-style JSON in the body; an
Envoy that knows already says it in a header. Tensor bytes are never looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

from runtime.errors import Code, PenstockError
from runtime.ids import ModelName, ModelVersion
from scheduler.picker.types import Asked, Reading

MODEL_HEADER, VERSION_HEADER, SESSION_HEADER = "x-gateway-model-name", "x-penstock-model-version", "x-penstock-session"
MAX_JSON_BYTES = 16 * 1024 * 1024
_MAX_NAME = 256
_GRPC_PATHS = (
    "/inference.GRPCInferenceService/ModelInfer",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    "/inference.GRPCInferenceService/ModelReady",
    "/inference.GRPCInferenceService/ModelMetadata",
    "/inference.GRPCInferenceService/ModelConfig",
    "/inference.GRPCInferenceService/ModelStatistics",
)
"""Calls whose message has the model's name first and its version second. ModelReady and its like: fields 1 and 2 as well."""

_REST = re.compile(r"/v2/models/([^/?]+)(?:/versions/([^/?]+))?(?:/|$|\?)")
_NAME, _VERSION = 0x0A, 0x12
_FRAME_BYTES = 5
"""Of a gRPC message: a byte that says whether it is compressed, four for its length (gRPC over HTTP/2)."""


class Unreadable(PenstockError, code=Code.INVALID_ARGUMENT, reason="MODEL_UNREADABLE"):
    """The request does not say which model it is for, in any way that is read here."""


def how_to_read(headers: Mapping[str, str]) -> Reading:
    """Where the model's name will be."""
    path = headers.get(":path", "")
    if headers.get(MODEL_HEADER) or _REST.match(path):
        return Reading.HEADERS
    return Reading.GRPC if path in _GRPC_PATHS else Reading.JSON


def asked_by_headers(headers: Mapping[str, str]) -> Asked:
    """Raises Unreadable."""
    session = headers.get(SESSION_HEADER, "")[:_MAX_NAME]
    if name := headers.get(MODEL_HEADER):
        return _asked(name, headers.get(VERSION_HEADER, ""), session)
    found = _REST.match(headers.get(":path", ""))
    if found is None:
        raise Unreadable("neither the path nor a header names a model")
    return _asked(unquote(found[1]), unquote(found[2] or ""), session)


def asked_by_grpc(body: bytes, session: str, *, ended: bool) -> Asked | None:
    """From the beginning of the first message; None: more of it is needed. Raises Unreadable."""
    if len(body) < _FRAME_BYTES:
        return _incomplete(ended)
    if body[0] != 0:
        raise Unreadable("the message is compressed; send it uncompressed, or name the model in a header")
    end, at, names = _FRAME_BYTES + int.from_bytes(body[1:5], "big"), _FRAME_BYTES, {_NAME: "", _VERSION: ""}
    while at < end:
        if at >= len(body):
            return _incomplete(ended)
        tag = body[at]
        if tag not in names:
            break  # what serialisers write after the names; a name that comes later is not waited for
        length, start = _length(body, at + 1)
        if start < 0 or start + length > len(body):
            return _incomplete(ended)
        names[tag], at = _text(body[start : start + length]), start + length
    return _asked(names[_NAME], names[_VERSION], session)


def asked_by_json(body: bytes, session: str) -> Asked:
    """From a whole body. Raises Unreadable."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unreadable("the body is no JSON; send an object with a field 'model'") from error
    name = content.get("model") if isinstance(content, dict) else None
    if not isinstance(name, str):
        raise Unreadable("the body has no text field 'model'; name the model there, or in a header")
    model, _, version = name.partition("@")
    return _asked(model, version, session)


def _asked(model: str, version: str, session: str) -> Asked:
    if not model or len(model) > _MAX_NAME or len(version) > _MAX_NAME:
        raise Unreadable(f"the request names no model, or one of more than {_MAX_NAME} characters")
    return Asked(ModelName(model), ModelVersion(version), session)


def _incomplete(ended: bool) -> Asked | None:
    if ended:
        raise Unreadable("the message ended before it had named a model")
    return None


def _length(body: bytes, at: int) -> tuple[int, int]:
    """A length and where what it is of begins; -1: the body ends before."""
    value = shift = 0
    while at < len(body):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _MAX_NAME * 4:
                raise Unreadable(f"the request names a model of more than {_MAX_NAME} characters")
            return value, at
        shift += 7
        if shift > 28:
            raise Unreadable("the message is no serialised request of inference.GRPCInferenceService")
    return 0, -1


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("a name in the message is not UTF-8") from error
