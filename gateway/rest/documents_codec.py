"""Everything but tensors: what a path and a body ask of the mesh as a message, and a message's answer as Triton's JSON.

Pure. Numbers stay numbers, whatever their width, and names stay as the contract has them; protobuf's own JSON writes 64 bits as
text. Source: Triton's protocol/extension_{model_configuration,statistics,model_repository,trace,logging}.md.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from google.protobuf.message import Message
from inference import grpc_service_pb2 as kserve

from gateway.rest.errors import RequestRefused
from gateway.rest.fields import MAX_JSON_BYTES, checked_text, flag, inner, kind_of, object_of, written, wrong
from gateway.rest.types import Body, RestAsked

_FILE = "file:"


def document(value: object) -> Body:
    return Body((written(value).encode(),))


def told(message: Message, *, leave_out: tuple[str, ...] = ()) -> dict[str, object]:
    """All fields of a message that are set, and those without presence also where they are not. Top-level: but these."""
    found: dict[str, object] = {}
    for field in message.DESCRIPTOR.fields:
        if field.name in leave_out or (field.has_presence and not message.HasField(field.name)):
            continue
        found[field.name] = _value(getattr(message, field.name), field)
    return found


def config_document(answer: kserve.ModelConfigResponse) -> Body:
    return document(told(answer.config))


def index_document(answer: kserve.RepositoryIndexResponse) -> Body:
    """An array; what nothing is said of is left out, as Triton does."""
    return document([{name: value for name, value in told(each).items() if value} for each in answer.models])


def tracing_document(answer: kserve.TraceSettingResponse) -> Body:
    """Levels are many, of the others there is one."""
    settings = {name: list(setting.value) for name, setting in answer.settings.items()}
    return document({name: values if name == "trace_level" else "".join(values[:1]) for name, values in settings.items()})


def logging_document(answer: kserve.LogSettingsResponse) -> Body:
    settings: dict[str, object] = {}
    for name, setting in answer.settings.items():
        choice = setting.WhichOneof("parameter_choice")
        settings[name] = None if choice is None else getattr(setting, choice)
    return document(settings)


def index_request(asked: RestAsked) -> kserve.RepositoryIndexRequest:
    """Raises RequestRefused, BodyTooLarge, as all that follow."""
    return kserve.RepositoryIndexRequest(repository_name=asked.repository, ready=flag(object_of(asked.body), "ready"))


def load_request(asked: RestAsked, max_bytes: int = MAX_JSON_BYTES) -> kserve.RepositoryModelLoadRequest:
    """Files come as base64, in parameters that are called `file:…`."""
    request = kserve.RepositoryModelLoadRequest(repository_name=asked.repository, model_name=asked.model)
    for name, value in inner(object_of(asked.body, max_bytes), "parameters").items():
        request.parameters[checked_text(name, "parameters")].CopyFrom(_load_parameter(name, value))
    return request


def unload_request(asked: RestAsked) -> kserve.RepositoryModelUnloadRequest:
    request = kserve.RepositoryModelUnloadRequest(repository_name=asked.repository, model_name=asked.model)
    for name, value in inner(object_of(asked.body), "parameters").items():
        request.parameters[checked_text(name, "parameters")].CopyFrom(_load_parameter(name, value))
    return request


def tracing_request(asked: RestAsked) -> kserve.TraceSettingRequest:
    """Null clears a setting, which an empty list does over gRPC."""
    request = kserve.TraceSettingRequest(model_name=asked.model)
    for name, value in object_of(asked.body).items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        setting = request.settings[checked_text(name, "settings")]
        for each in values:
            if not isinstance(each, str | int) or isinstance(each, bool):
                wrong(name, each, "a string, an array of strings, or null")
            setting.value.append(checked_text(str(each), name))
    return request


def logging_request(asked: RestAsked) -> kserve.LogSettingsRequest:
    request = kserve.LogSettingsRequest()
    for name, value in object_of(asked.body).items():
        setting = request.settings[checked_text(name, "settings")]
        if isinstance(value, bool):
            setting.bool_param = value
        elif isinstance(value, int) and 0 <= value < 2**32:
            setting.uint32_param = value
        elif isinstance(value, str):
            setting.string_param = checked_text(value, name)
        else:
            wrong(name, value, "a boolean, a string, or an integer from 0")
    return request


def _load_parameter(name: str, value: object) -> kserve.ModelRepositoryParameter:
    if isinstance(value, bool):
        return kserve.ModelRepositoryParameter(bool_param=value)
    if isinstance(value, str) and name.startswith(_FILE):
        try:
            return kserve.ModelRepositoryParameter(bytes_param=base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            raise RequestRefused(f"parameter {name[:80]!r} is no base64; send the file's bytes so") from None
    if isinstance(value, str):
        return kserve.ModelRepositoryParameter(string_param=checked_text(value, name))
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return kserve.ModelRepositoryParameter(int64_param=value)
    raise RequestRefused(f"parameter {name[:80]!r} is {kind_of(value)}; expected a string, an integer or a boolean")


def _value(value: object, field: Any) -> object:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        content = field.message_type.fields_by_name["value"]
        return {str(key): _one(each, content) for key, each in dict(value).items()}  # type: ignore[call-overload]
    if field.is_repeated:
        return [_one(each, field) for each in value]  # type: ignore[attr-defined]
    return _one(value, field)


def _one(value: object, field: Any) -> object:
    if isinstance(value, Message):
        return told(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return named.name if named is not None else value
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value
