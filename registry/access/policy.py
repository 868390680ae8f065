"""What each role may do, and whether what was shown still counts. Pure: tables and comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from registry.access.types import AccountRole, MoreThanOwn, Principal, Scope
from runtime.identity import Role
from runtime.ids import ModelName

_READ = frozenset({Scope.MODELS_READ, Scope.ACCOUNTS_READ, Scope.AUDIT_READ})

NODE_SCOPES: Mapping[Role, frozenset[Scope]] = {
    Role.OPERATOR: frozenset(Scope),
    Role.GATEWAY: frozenset(
        {Scope.KEYS_RESOLVE, Scope.MODELS_READ, Scope.MODELS_PUBLISH, Scope.INCIDENTS_REPORT, Scope.NODES_RENEW}
    ),
    Role.SCHEDULER: frozenset({Scope.MODELS_READ, Scope.ALIASES_SETTLE, Scope.INCIDENTS_REPORT, Scope.NODES_RENEW}),
    Role.WORKER: frozenset({Scope.MODELS_READ, Scope.FILES_FETCH, Scope.INCIDENTS_REPORT, Scope.NODES_RENEW}),
    Role.REGISTRY: frozenset({Scope.NODES_RENEW}),
    Role.ENVOY: frozenset({Scope.NODES_RENEW}),
}

ACCOUNT_SCOPES: Mapping[AccountRole, frozenset[Scope]] = {
    AccountRole.OWNER: _READ | {Scope.INFER, Scope.MODELS_PUBLISH, Scope.MODELS_LOAD, Scope.ACCOUNTS_WRITE},
    AccountRole.PUBLISHER: frozenset({Scope.INFER, Scope.MODELS_READ, Scope.MODELS_PUBLISH, Scope.MODELS_LOAD}),
    AccountRole.CALLER: frozenset({Scope.INFER, Scope.MODELS_READ}),
    AccountRole.AUDITOR: _READ,
}

SPEAKS_FOR_OTHERS = frozenset({Role.ENVOY, Role.GATEWAY})
"""Nodes whose calls are their callers' where a session or key came with them."""


def scopes_of_key(role: AccountRole, granted: Iterable[str]) -> frozenset[Scope]:
    """What a key may do: what it was granted, as far as its role still may."""
    names = frozenset(granted)
    return frozenset(scope for scope in ACCOUNT_SCOPES[role] if scope.value in names)


def is_live(revoked_at_ms: int, expires_at_ms: int, now_ms: int) -> bool:
    """Whether what was neither revoked nor is past its time (0 = never) still counts."""
    return not revoked_at_ms and (not expires_at_ms or now_ms < expires_at_ms)


def require_as_much(principal: Principal, scopes: frozenset[Scope], allowed_models: frozenset[ModelName] = frozenset()) -> None:
    """Nobody hands out more than it has itself: rights, or models (none named = every model). Raises MoreThanOwn."""
    who = f"{principal.kind.value} {principal.actor_id}"
    if more := scopes - principal.scopes:
        names = ", ".join(sorted(scope.value for scope in more))
        raise MoreThanOwn(f"{who} does not have the rights {names} itself and so cannot give them")
    own = principal.allowed_models
    if own and not (allowed_models and allowed_models <= own):
        raise MoreThanOwn(f"{who} is for {len(own)} models alone and so cannot give access to others; name some of those")
