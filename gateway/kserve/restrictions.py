"""Groups of calls that need a header of their own besides the key, as Triton's --grpc-restricted-protocol has them.

Decides which call is in which group, and whether a header opens it. Values are compared in constant time and never shown.
Source: Triton's docs/customization_guide/inference_protocols.md, "Limit Endpoint Access".
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping

from runtime.errors import Code, InvalidArgument, PenstockError

GRPC_PREFIX = "triton-grpc-protocol-"
"""Of the header over gRPC; over HTTP it is the key itself."""

GROUPS: Mapping[str, frozenset[str]] = {
    "health": frozenset({"ServerLive", "ServerReady", "ModelReady"}),
    "metadata": frozenset({"ServerMetadata", "ModelMetadata"}),
    "inference": frozenset({"ModelInfer", "ModelStreamInfer"}),
    "shared-memory": frozenset(
        f"{kind}SharedMemory{act}" for kind in ("System", "Cuda") for act in ("Status", "Register", "Unregister")
    ),
    "model-config": frozenset({"ModelConfig"}),
    "model-repository": frozenset({"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"}),
    "statistics": frozenset({"ModelStatistics"}),
    "trace": frozenset({"TraceSetting"}),
    "logging": frozenset({"LogSettings"}),
}
"""By the RPC of inference.GRPCInferenceService; a door with other names says which of these each of its calls is."""

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class ProtocolRestricted(PenstockError, code=Code.PERMISSION_DENIED, reason="PROTOCOL_RESTRICTED"):
    """The call is in a group that needs a header. The sentence is Triton's; its code is UNAVAILABLE, which clients retry."""


class Restrictions:
    """What one door asks for. Immutable."""

    def __init__(self, needed: Mapping[str, tuple[str, bytes]], word: str) -> None:
        """`needed`: header and value by RPC. `word`: what the door calls its calls."""
        self._needed, self._word = needed, word

    def check(self, rpc: str, headers: Mapping[str, str | bytes]) -> None:
        """Raises ProtocolRestricted."""
        found = self._needed.get(rpc)
        if found is None:
            return
        header, value = found
        given = headers.get(header, b"")
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, value):
            raise ProtocolRestricted(f"This {self._word} is restricted, expecting header '{header}'")


def grpc_restrictions(setting: str) -> Restrictions | None:
    """Of what `--grpc-restricted-protocol` says. Raises InvalidArgument."""
    return _restrictions(setting, GRPC_PREFIX, "protocol", "--grpc-restricted-protocol")


def http_restrictions(setting: str) -> Restrictions | None:
    """Of what `--http-restricted-api` says. Raises InvalidArgument."""
    return _restrictions(setting, "", "API", "--http-restricted-api")


def _restrictions(setting: str, prefix: str, word: str, option: str) -> Restrictions | None:
    """`<group,…>:<key>=<value>`, one after the other, parted by semicolons."""
    if not setting.strip():
        return None
    needed: dict[str, tuple[str, bytes]] = {}
    for place, rule in enumerate(filter(None, map(str.strip, setting.split(";"))), 1):
        names, _, pair = rule.partition(":")
        key, _, value = pair.partition("=")
        if not _KEY.fullmatch(key) or not value:
            raise InvalidArgument(f"{option}: rule {place} is not of the form group,…:key=value")
        for name in (each.strip() for each in names.split(",")):
            if name not in GROUPS:
                raise InvalidArgument(f"{option}: rule {place} names group {name[:40]!r}; there are: {', '.join(GROUPS)}")
            if not needed.keys().isdisjoint(GROUPS[name]):
                raise InvalidArgument(f"{option}: group {name!r} is in two rules; a group has one header")
            needed |= dict.fromkeys(GROUPS[name], ((prefix + key).lower(), value.encode()))
    return Restrictions(needed, word)
