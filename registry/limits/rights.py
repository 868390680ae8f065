"""Who may limit whom, and who sees which limit. Pure: the caller and the limit are given."""

from __future__ import annotations

from collections.abc import Mapping

from registry.access.types import Principal, Scope
from registry.limits.types import Limit, LimitSubject, OperatorsAlone, Setter
from runtime.ids import ModelName, TenantId

ModelOwners = Mapping[ModelName, tuple[TenantId, frozenset[str]]]
"""Whose a model is, and with whom it is shared."""


def setter_of(principal: Principal) -> Setter:
    """Whose hand this caller is; whether it may set anything, others decide."""
    return Setter.OPERATOR if principal.tenant is None else Setter.OWNER


def require_over(principal: Principal, subject: LimitSubject) -> None:
    """Raises ScopeRequired, OtherTenant; OperatorsAlone where it is about everybody. Whose a key is, its row says."""
    principal.require(Scope.ACCOUNTS_WRITE, subject.tenant or None)
    if principal.tenant is not None and not subject.tenant and not subject.key_id:
        raise OperatorsAlone(f"operators alone set limits on everybody; name tenant {principal.tenant}, or one of its keys")


def require_own(principal: Principal, limit: Limit) -> None:
    """Raises OperatorsAlone where an owner is about to lift what an operator set."""
    if principal.tenant is not None and limit.subject.set_by is Setter.OPERATOR:
        raise OperatorsAlone(f"an operator set limit {limit.limit_id}; operators alone lift it")


def sees(principal: Principal, limit: Limit, owners: ModelOwners) -> bool:
    """A tenant sees its own, and those on everybody that do not name a model which is not there for it."""
    tenant, model = limit.subject.tenant, limit.subject.model
    if tenant or not model or principal.tenant is None:
        return not tenant or principal.sees(tenant)
    owner = owners.get(model)
    return owner is not None and principal.sees(*owner)


def model_fault(principal: Principal, subject: LimitSubject) -> str | None:
    """Why one who may have some models alone cannot set this limit, or lift it."""
    own = principal.allowed_models
    if not own or subject.model in own:
        return None
    who = f"{principal.kind.value} {principal.actor_id}"
    return f"{who} is for {len(own)} models alone and so can limit the use of those alone; name one of them"
