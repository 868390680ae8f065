"""What came with a call to say who makes it: the certificate of the connection, and the headers beside it.

Reads, and decides nothing: `door.py` does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc.aio

from registry.access.addresses import address_of
from registry.access.forwarded import HEADER as FORWARDED_CERTIFICATE
from registry.access.types import CredentialsRefused
from runtime.identity import Peer, Role
from runtime.serving import inner_peer

Context = grpc.aio.ServicerContext[Any, Any]
_REQUEST_ID = "x-request-id"
_MAX_REQUEST_ID_CHARACTERS = 128
_CERTIFIED = ("x509_subject_alternative_name", "x509_pem_cert")


def certified_peer(context: Context) -> Peer | None:
    """Who is at the other end of the connection; None where it showed no certificate. Raises where it is none of ours."""
    shown = context.auth_context()
    return inner_peer(context) if any(shown.get(name) for name in _CERTIFIED) else None


def is_private(context: Context) -> bool:
    """Whether nobody between can read what is sent."""
    return b"ssl" in tuple(context.auth_context().get("transport_security_type", ()))


def bearer_of(context: Context) -> str:
    """The session or API key that came with the call; empty where none did. Raises CredentialsRefused on two of them."""
    shown = {*_authorizations(context), *_values(context, "x-api-key")}
    if len(shown) > 1:
        raise CredentialsRefused("more than one session or key came with this call; send one, as 'authorization: Bearer …'")
    return next(iter(shown), "")


def forwarded_certificate(context: Context) -> str:
    """Several such headers are one, joined: RFC 9110 5.3."""
    return ",".join(_values(context, FORWARDED_CERTIFICATE))


def request_id_of(context: Context) -> str:
    """The caller's own, where it can stand in a trail."""
    wanted = next(iter(_values(context, _REQUEST_ID)), "")
    return wanted if len(wanted) <= _MAX_REQUEST_ID_CHARACTERS and wanted.isprintable() else ""


def caller_address(context: Context) -> str:
    """Where the call comes from. Envoy appends whom it saw to `x-forwarded-for`; from others that header means nothing."""
    peer = certified_peer(context)
    through_envoy = peer is not None and peer.role is Role.ENVOY
    return address_of(context.peer(), ",".join(_values(context, "x-forwarded-for")) if through_envoy else "")


def _authorizations(context: Context) -> Iterator[str]:
    for value in _values(context, "authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise CredentialsRefused("the authorization header is not of the form 'Bearer …'; send a session or an API key so")
        yield token.strip()


def _values(context: Context, name: str) -> list[str]:
    pairs = context.invocation_metadata() or ()
    return [value for key, value in pairs if key == name and isinstance(value, str) and value]
