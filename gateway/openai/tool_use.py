"""Tools and answer formats of OpenAI's requests: checked for their shape, and passed on as they came. Pure.

Decides nothing about what they mean: the engine that takes them does. Source: OpenAI's API reference for POST
/v1/chat/completions ("tools", "tool_choice", "parallel_tool_calls", "response_format").
"""

from __future__ import annotations

import json
import re

from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, fields_of, kind_of, text_of
from gateway.openai.types import ToolUse

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_CHOICES = ("none", "auto", "required")


def tool_use_of(body: Fields) -> ToolUse:
    """Raises RequestRefused."""
    names = _tools(body)
    tools = _json(body.get("tools")) if names else ""
    return ToolUse(
        tools,
        _choice(body, names),
        (body.flag("parallel_tool_calls") if body.get("parallel_tool_calls") is not None else None) if names else None,
        _response_format(body),
    )


def _tools(body: Fields) -> frozenset[str]:
    """Their names; without any, nothing can be called."""
    if body.get("tools") in (None, []):
        return frozenset()
    return frozenset(_named(each, f"tools[{index}]") for index, each in enumerate(body.items("tools", MAX_TOOLS)))


def _named(value: object, path: str) -> str:
    """The name of a function as a tool or a choice tells it."""
    fields = fields_of(value, path)
    kind = text_of(fields.required("type"), fields.path("type"))
    if kind != "function":
        raise RequestRefused(
            f"'{path}.type' is {kind[:40]!r}; only 'function' is taken here", param=f"{path}.type", fault="unsupported_value"
        )
    function = fields_of(fields.required("function"), fields.path("function"))
    return _checked_name(function)


def _checked_name(fields: Fields) -> str:
    name, path = text_of(fields.required("name"), fields.path("name")), fields.path("name")
    if not _NAME.fullmatch(name):
        raise RequestRefused(f"{path!r} is {name[:80]!r}; 1 to 64 letters, digits, '_', '-' and '.' are taken", param=path)
    parameters = fields.get("parameters")
    if parameters is not None:
        fields_of(parameters, fields.path("parameters"))
    return name


def _choice(body: Fields, names: frozenset[str]) -> str:
    value = body.get("tool_choice")
    if value is None:
        return ""
    if isinstance(value, str):
        if value not in _CHOICES:
            raise RequestRefused(
                f"'tool_choice' is {value[:40]!r}; known: {', '.join(_CHOICES)}, or an object that names a function",
                param="tool_choice",
            )
        if value == "required" and not names:
            raise RequestRefused("'tool_choice' is 'required', but there are no 'tools'; send some", param="tool_choice")
        return _json(value) if names else ""
    name = _named(value, "tool_choice")
    if name not in names:
        raise RequestRefused(f"'tool_choice' names {name!r}, which is not among the 'tools'", param="tool_choice")
    return _json(value)


def _response_format(body: Fields) -> str:
    value = body.get("response_format")
    if value is None:
        return ""
    fields = fields_of(value, "response_format")
    kind = text_of(fields.required("type"), fields.path("type"))
    if kind == "text":
        return ""
    if kind not in ("json_object", "json_schema"):
        raise RequestRefused(
            f"'response_format.type' is {kind[:40]!r}; known: text, json_object, json_schema",
            param="response_format.type",
            fault="unsupported_value",
        )
    if kind == "json_schema":
        described = fields_of(fields.required("json_schema"), fields.path("json_schema"))
        _checked_name(described)
        schema = described.get("schema")
        if schema is not None and not isinstance(schema, dict):
            path = described.path("schema")
            raise RequestRefused(f"{path!r} is {kind_of(schema)}; expected an object", param=path, fault="invalid_type")
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
