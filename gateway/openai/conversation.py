"""Conversations and prompts of OpenAI's requests → turns. Pure. Refuses what it would otherwise have to leave out.

Source: OpenAI's API reference for POST /v1/chat/completions ("messages") and /v1/completions ("prompt").
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from gateway.openai.errors import RequestRefused
from gateway.openai.fields import Fields, fields_of, kind_of, text_of
from gateway.openai.types import Prompt, Turn

MAX_TURNS = 16_384
MAX_PROMPTS = 128
MAX_TOOL_CALLS = 128
"""Of one turn."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Chat templates know no developer; it is the system's newer name."""

_TAKEN = frozenset({"role", "content", "name"})
_TAKEN_OF = {"assistant": _TAKEN | {"tool_calls"}, "tool": _TAKEN | {"tool_call_id"}}
_INERT: Mapping[str, tuple[object, ...]] = {
    "tool_calls": ([],),
    "annotations": ([],),
    "function_call": (),
    "audio": (),
    "refusal": ("",),
    "tool_call_id": (),
}


def turns_of(body: Fields) -> tuple[Turn, ...]:
    """Raises RequestRefused."""
    return tuple(_turn(each, f"messages[{index}]") for index, each in enumerate(body.items("messages", MAX_TURNS)))


def prompts_of(body: Fields) -> tuple[Prompt, ...]:
    """One or several texts. Raises RequestRefused, also for token ids, which mean something else to each model."""
    value = body.required("prompt")
    if isinstance(value, str):
        return (text_of(value, "prompt"),)
    if not isinstance(value, list):
        raise RequestRefused(
            f"'prompt' is {kind_of(value)}; expected a string or an array of strings", param="prompt", fault="invalid_type"
        )
    prompts = body.items("prompt", MAX_PROMPTS if not value or isinstance(value[0], str) else len(value))
    if not isinstance(prompts[0], str):
        raise RequestRefused(
            "'prompt' holds token ids, or something else than strings; send texts", param="prompt", fault="unsupported_value"
        )
    return tuple(text_of(each, f"prompt[{index}]") for index, each in enumerate(prompts))


def _turn(value: object, path: str) -> Turn:
    fields = fields_of(value, path)
    role = text_of(fields.required("role"), fields.path("role"))
    if role not in _ROLES:
        raise RequestRefused(
            f"'{path}.role' is {role[:40]!r}; known here: {', '.join(_ROLES)}", param=f"{path}.role", fault="unsupported_value"
        )
    fields.only(_TAKEN_OF.get(role, _TAKEN), _INERT)
    calls = _tool_calls(fields) if role == "assistant" else ""
    answers = text_of(fields.required("tool_call_id"), fields.path("tool_call_id")) if role == "tool" else ""
    # Who called tools need not have said anything.
    said = fields.get("content") if calls else fields.required("content")
    content = "" if said is None else _content(said, fields.path("content"))
    return Turn(_ROLES[role], content, fields.text("name") or "", calls, answers)


def _tool_calls(fields: Fields) -> str:
    """What an assistant called, checked and as it came; empty: nothing."""
    if fields.get("tool_calls") in (None, []):
        return ""
    calls = fields.items("tool_calls", MAX_TOOL_CALLS)
    for index, value in enumerate(calls):
        call = fields_of(value, f"{fields.path('tool_calls')}[{index}]")
        text_of(call.required("id"), call.path("id"))
        if call.text("type") not in (None, "function"):
            raise RequestRefused(
                f"{call.path('type')!r} is taken as 'function' only", param=call.path("type"), fault="unsupported_value"
            )
        function = fields_of(call.required("function"), call.path("function"))
        text_of(function.required("name"), function.path("name"))
        text_of(function.required("arguments"), function.path("arguments"))
    return json.dumps(calls, separators=(",", ":"))


def _content(value: object, path: str) -> str:
    if isinstance(value, str):
        return text_of(value, path)
    if not isinstance(value, list):
        raise RequestRefused(
            f"'{path}' is {kind_of(value)}; expected a string or an array of text parts", param=path, fault="invalid_type"
        )
    return "\n".join(_part(each, f"{path}[{index}]") for index, each in enumerate(value))


def _part(value: object, path: str) -> str:
    part = fields_of(value, path)
    kind = text_of(part.required("type"), part.path("type"))
    if kind != "text":
        raise RequestRefused(
            f"'{path}.type' is {kind[:40]!r}; only text parts are taken here", param=f"{path}.type", fault="unsupported_value"
        )
    return text_of(part.required("text"), part.path("text"))
