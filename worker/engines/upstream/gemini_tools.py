"""Tools as Google's Gemini API has them, out of OpenAI's JSON and back. Pure.

Gemini's calls have no ids, or ids of its own: an answer's calls get ids made of their place and name, and a tool's answer is
sent under the name of the call that it answers. A call comes whole, with its arguments as an object. Source: the reference at
ai.google.dev: Tool, FunctionDeclaration, FunctionCallingConfig, FunctionCall, FunctionResponse.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from runtime.errors import InvalidArgument
from worker.engine import Message, ToolCallPart, ToolUse
from worker.engines.upstream.json import Malformed, json_of, object_of, text_of
from worker.engines.upstream.tool_calls import sent_json, sent_objects

_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}


def tool_fields(use: ToolUse) -> Mapping[str, object]:
    """What a request says of its tools. Raises InvalidArgument."""
    if not use.tools_json:
        return {}
    if use.parallel is False:
        raise InvalidArgument("Gemini may always call several tools at once; leave 'parallel_tool_calls' out")
    try:
        functions = [_declared(object_of(each.get("function"))) for each in sent_objects(use.tools_json, "tools")]
        config = _calling(sent_json(use.choice_json, "tool_choice"))
    except Malformed as error:
        raise InvalidArgument(f"'tools' or 'tool_choice' holds {error}; send it as OpenAI's API has it") from error
    return {"tools": [{"functionDeclarations": functions}], **config}


def format_fields(use: ToolUse) -> Mapping[str, object]:
    """What a request's generationConfig says of the answer's format. Raises InvalidArgument."""
    if not use.response_format_json:
        return {}
    try:
        asked = object_of(sent_json(use.response_format_json, "response_format"))
        described = asked.get("json_schema")
        schema = None if described is None else object_of(described).get("schema")
    except Malformed as error:
        raise InvalidArgument(f"'response_format' holds {error}; send it as OpenAI's API has it") from error
    return {"responseMimeType": "application/json", **({} if schema is None else {"responseJsonSchema": schema})}


def called_names(turns: Sequence[Message]) -> Mapping[str, str]:
    """The functions that assistants called, by the ids of their calls. Raises InvalidArgument."""
    names: dict[str, str] = {}
    for turn in turns:
        for call in sent_objects(turn.tool_calls_json, "tool_calls"):
            names[text_of(call.get("id"))] = _function(call)[0]
    return names


def parts_of(turn: Message, names: Mapping[str, str]) -> list[Mapping[str, object]]:
    """A turn's parts: its text, its calls, or what a tool answered. Raises InvalidArgument."""
    if turn.tool_call_id or turn.role == "tool":
        if turn.tool_call_id not in names:
            raise InvalidArgument(f"no call before it has the 'tool_call_id' {turn.tool_call_id[:80]!r}; send the call too")
        return [{"functionResponse": {"name": names[turn.tool_call_id], "response": _answer(turn.content)}}]
    calls = [_function(call) for call in sent_objects(turn.tool_calls_json, "tool_calls")]
    said: list[Mapping[str, object]] = [{"text": turn.content}] if turn.content or not calls else []
    return said + [{"functionCall": {"name": name, "args": arguments}} for name, arguments in calls]


def call_part(value: object, place: int) -> ToolCallPart:
    """A call of an answer. Raises Malformed."""
    call = object_of(value)
    name, arguments = text_of(call.get("name")), call.get("args")
    given = {} if arguments is None else object_of(arguments)
    return ToolCallPart(place, text_of(call.get("id")) or f"call_{place}_{name}", name, json.dumps(given, ensure_ascii=False))


def _declared(function: Mapping[str, object]) -> Mapping[str, object]:
    fields = {
        "name": function.get("name"),
        "description": function.get("description"),
        "parametersJsonSchema": function.get("parameters"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _calling(choice: object) -> Mapping[str, object]:
    if choice is None:
        return {}
    if isinstance(choice, str):
        config: Mapping[str, object] = {"mode": _MODES.get(choice, "AUTO")}
    else:
        name = object_of(object_of(choice).get("function")).get("name")
        config = {"mode": "ANY", "allowedFunctionNames": [name]}
    return {"toolConfig": {"functionCallingConfig": config}}


def _function(call: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """A call's name and arguments, as an assistant's turn tells them."""
    try:
        function = object_of(call.get("function"))
        arguments = text_of(function.get("arguments"))
        return text_of(function.get("name")), object_of(json_of(arguments.encode(errors="replace"))) if arguments else {}
    except Malformed as error:
        raise InvalidArgument(f"a tool call holds {error}; Gemini takes arguments that are a JSON object") from error


def _answer(content: str) -> Mapping[str, object]:
    """What a tool gave, as the object that Gemini wants."""
    try:
        return object_of(json_of(content.encode(errors="replace")))
    except Malformed:
        return {"result": content}
