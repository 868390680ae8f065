"""Tools in OpenAI's JSON: what a request says of them, and the calls of an answer in parts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.errors import InvalidArgument
from worker.engine import ToolCallPart
from worker.engines.upstream.json import Malformed, count_of, items_of, json_of, object_of, text_of

MAX_PLACE = 127
"""Of a call among those of one answer."""


def sent_json(text: str, name: str) -> object | None:
    """A request's own JSON; None where there is none. Raises InvalidArgument."""
    if not text:
        return None
    try:
        return json_of(text.encode(errors="replace"))
    except Malformed as error:
        raise InvalidArgument(f"{name!r} holds {error}; send it as OpenAI's API has it") from error


def sent_objects(text: str, name: str) -> Sequence[Mapping[str, object]]:
    """A request's own array of objects. Raises InvalidArgument."""
    try:
        return [object_of(each) for each in items_of(sent_json(text, name))]
    except Malformed as error:
        raise InvalidArgument(f"{name!r} holds {error}; send it as OpenAI's API has it") from error


def tool_calls_of(value: object) -> tuple[ToolCallPart, ...]:
    """The parts that one chunk holds. Raises Malformed."""
    return tuple(_part(object_of(each), place) for place, each in enumerate(items_of(value)))


def _part(part: Mapping[str, object], place: int) -> ToolCallPart:
    index, given = part.get("index"), part.get("function")
    at = place if index is None else count_of(index)
    if at > MAX_PLACE:
        raise Malformed(f"a tool call at place {at}")
    function = {} if given is None else object_of(given)
    return ToolCallPart(at, text_of(part.get("id")), text_of(function.get("name")), text_of(function.get("arguments")))
