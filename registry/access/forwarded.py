"""Whose certificate Envoy saw, from what it writes into `x-forwarded-client-cert`. Pure.

Source: Envoy, configuration/http/http_conn_man/headers, x-forwarded-client-cert: elements are separated by commas, one a proxy,
the last one the nearest; an element is pairs `Key=value` separated by semicolons; keys are case-insensitive; a value with a
comma, semicolon or equals sign is double-quoted, and a double quote in it has a backslash before it. A certificate's URIs are
separate pairs. Envoy writes URIs as they are, without quotes, so an equals sign is taken there too.

Never decides whether the one who sent the header is to be believed: that is the door's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from registry.access.types import CredentialsRefused
from runtime.identity import Role

HEADER = "x-forwarded-client-cert"
_KEYS = frozenset({"by", "hash", "cert", "chain", "subject", "uri", "dns"})
_PAIR = re.compile(r'(?P<key>[A-Za-z]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^",;]*))(?P<end>[,;]|\Z)')
_SCHEME = "penstock://"


def forwarded_uris(header: str) -> tuple[str, ...]:
    """The URIs of the certificate that the nearest proxy saw. Raises CredentialsRefused on what no Envoy writes."""
    *_, last = _elements(header)
    uris = tuple(value for key, value in last if key == "uri")
    if sum(_names_a_node(uri) for uri in uris) != 1:
        raise CredentialsRefused(f"{HEADER} names no one node of this mesh; connect with a certificate of it")
    return uris


def _elements(header: str) -> Iterator[list[tuple[str, str]]]:
    element: list[tuple[str, str]] = []
    at = 0
    while True:
        pair = _PAIR.match(header, at)
        if pair is None or pair["key"].lower() not in _KEYS:
            raise CredentialsRefused(f"{HEADER} cannot be read at character {at}; Envoy's own form is expected")
        quoted = pair["quoted"]
        element.append((pair["key"].lower(), pair["bare"] if quoted is None else quoted.replace('\\"', '"')))
        if pair["end"] != ";":
            yield element
            element = []
        if not pair["end"]:
            return
        at = pair.end()


def _names_a_node(uri: str) -> bool:
    role, _, node_id = uri.removeprefix(_SCHEME).partition("/")
    return uri.startswith(_SCHEME) and role in Role._value2member_map_ and bool(node_id)
