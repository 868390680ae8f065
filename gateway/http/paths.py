"""Which RPC an HTTP request is for, by the paths that the contracts carry, and the message that it makes.

Pure. What Envoy's transcoder does for services whose bodies are google.api.HttpBody, done here for the same contracts, so that
a path means the same whichever way a request comes. Source: google/api/http.proto, as far as these contracts use it: literal
segments, single-segment variables, a body that is all of the message or one field of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

from google.api import annotations_pb2, httpbody_pb2
from google.protobuf import descriptor, message, message_factory

from runtime.errors import InvalidArgument

HttpBody = httpbody_pb2.HttpBody
MAX_QUERY_FIELDS = 64
_INTEGERS = frozenset(
    {
        descriptor.FieldDescriptor.CPPTYPE_INT32,
        descriptor.FieldDescriptor.CPPTYPE_INT64,
        descriptor.FieldDescriptor.CPPTYPE_UINT32,
        descriptor.FieldDescriptor.CPPTYPE_UINT64,
    }
)
_FLAGS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Binding:
    """One HTTP path of one RPC."""

    service: str
    method: str
    verb: str
    segments: tuple[str, ...]
    """A variable is its field's name, in braces."""
    body: str
    """The field that the body becomes; `*`: the body is the message; empty: there is none."""
    request: type[message.Message]
    streams: bool
    """The RPC answers in a stream."""

    def variables(self, segments: tuple[str, ...]) -> dict[str, str] | None:
        """What these path segments set; None where they are none of this path."""
        found: dict[str, str] = {}
        for own, given in zip(self.segments, segments, strict=True):
            if own.startswith("{"):
                if not given:
                    return None
                found[own[1:-1]] = unquote(given)
            elif own != given:
                return None
        return found

    def names(self, variables: Mapping[str, str], query: str) -> list[tuple[str, str]]:
        """What path and query say, in this order. Raises InvalidArgument."""
        return [*variables.items(), *_query(query)]

    def message(self, variables: Mapping[str, str], query: str, content_type: str, body: bytes) -> message.Message:
        """The RPC's request. Raises InvalidArgument for a query that does not fit."""
        if self.body == "*":
            whole: message.Message = HttpBody(content_type=content_type, data=body)
            return whole
        made: message.Message = self.request()
        for name, value in _query(query):
            if name not in variables and name != self.body:
                _set(made, name, value)
        for name, value in variables.items():
            _set(made, name, value)
        if self.body:
            part = getattr(made, self.body)
            part.content_type, part.data = content_type, body
        return made


class Paths:
    """Every binding of some services."""

    def __init__(self, services: Iterable[descriptor.ServiceDescriptor]) -> None:
        """Raises ValueError for a path of a kind that is not known here."""
        self._plain: dict[tuple[str, str], Binding] = {}
        self._by_shape: dict[tuple[str, int], list[Binding]] = {}
        for binding in (each for service in services for each in _bindings(service)):
            if any(segment.startswith("{") for segment in binding.segments):
                self._by_shape.setdefault((binding.verb, len(binding.segments)), []).append(binding)
            else:
                self._plain[binding.verb, "/" + "/".join(binding.segments)] = binding

    def find(self, verb: str, path: str) -> tuple[Binding, Mapping[str, str]] | None:
        """Whose this path is, and what its variables are. `path`: as it came, without its query."""
        plain = self._plain.get((verb, path))
        if plain is not None:
            return plain, {}
        segments = tuple(path[1:].split("/"))
        for binding in self._by_shape.get((verb, len(segments)), ()):
            variables = binding.variables(segments)
            if variables is not None:
                return binding, variables
        return None


def _bindings(service: descriptor.ServiceDescriptor) -> Iterator[Binding]:
    for method in service.methods:
        rule = method.GetOptions().Extensions[annotations_pb2.http]
        for one in (rule, *rule.additional_bindings):
            verb = one.WhichOneof("pattern")
            if verb is not None:
                request = message_factory.GetMessageClass(method.input_type)
                segments = _segments(getattr(one, verb))
                yield Binding(
                    service.full_name, method.name, verb.upper(), segments, one.body, request, bool(method.server_streaming)
                )


def _segments(template: str) -> tuple[str, ...]:
    segments = tuple(template.removeprefix("/").split("/"))
    for segment in segments:
        whole = segment.startswith("{") and segment.endswith("}")
        if ("{" in segment or "*" in segment or ":" in segment) and not (whole and segment[1:-1].isidentifier()):
            raise ValueError(f"path {template!r} has segment {segment!r}, which is neither literal nor one plain variable")
    return segments


def _query(query: str) -> Iterator[tuple[str, str]]:
    if not query:
        return
    try:
        yield from parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        raise InvalidArgument(f"the query has more than {MAX_QUERY_FIELDS} fields; send fewer") from None


def _set(made: message.Message, name: str, value: str) -> None:
    """Unknown names are left out, as Envoy leaves them out."""
    field = made.DESCRIPTOR.fields_by_name.get(name)
    if field is None or field.message_type is not None or field.is_repeated:
        return
    setattr(made, name, _value(field, value))


def _value(field: Any, text: str) -> str | int | bool:
    """Raises InvalidArgument."""
    if field.cpp_type == descriptor.FieldDescriptor.CPPTYPE_STRING:
        return text
    if field.cpp_type == descriptor.FieldDescriptor.CPPTYPE_BOOL and text.lower() in _FLAGS:
        return _FLAGS[text.lower()]
    unsigned = field.cpp_type in (descriptor.FieldDescriptor.CPPTYPE_UINT32, descriptor.FieldDescriptor.CPPTYPE_UINT64)
    digits = text if unsigned else text.removeprefix("-")
    if field.cpp_type in _INTEGERS and digits.isdecimal() and digits.isascii() and len(digits) < 10:
        return int(text)
    raise InvalidArgument(f"query parameter {field.name!r} is {text[:80]!r}; that is not a value it takes")
