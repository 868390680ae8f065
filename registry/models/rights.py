"""Who may work with which model: found and checked in one step, so that none is used unchecked.

What is not there for a caller is answered like what is not there at all, word for word: that another tenant has a model is not
its to know. (That a name is taken, it learns when it creates a model: names are of one kind in the whole mesh.)
"""

from __future__ import annotations

from registry.access.types import OtherTenant, Principal, Scope, ScopeRequired
from registry.models.policy import model_faults, sees
from registry.models.sql import ModelRows
from registry.models.types import Model, ModelUnknown
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, TenantId


def require_publisher(principal: Principal, model: ModelName, tenant: TenantId) -> None:
    """Raises ScopeRequired, OtherTenant."""
    principal.require(Scope.MODELS_PUBLISH, tenant)
    _require_listed(principal, model)


def _require_listed(principal: Principal, model: ModelName) -> None:
    if principal.allowed_models and model not in principal.allowed_models:
        raise ScopeRequired(f"{principal.kind.value} {principal.actor_id} may not work with model {model}; its list has others")


async def to_change(rows: ModelRows, principal: Principal, name: ModelName) -> Model:
    """The model, locked, if this caller may change it. Raises InvalidArgument, ModelUnknown, ScopeRequired.

    OtherTenant, where it is another tenant's and the caller sees it.
    """
    principal.require(Scope.MODELS_PUBLISH)
    _require_listed(principal, name)
    model = await locked(rows, name)
    try:
        principal.require(Scope.MODELS_PUBLISH, model.tenant)
    except OtherTenant as error:
        if principal.sees(model.tenant, model.shared_with):
            raise
        raise _none_to_change(name) from error
    return model


async def to_read(rows: ModelRows, principal: Principal, name: ModelName) -> Model:
    """The model, if this caller sees it. Raises InvalidArgument, ModelUnknown; OtherTenant for a worker that serves others."""
    _check_name(name)
    model = await rows.model(name)
    if model is not None and not principal.may_load(model.tenant, model.shared_with):
        served = ", ".join(sorted(principal.node_tenants))
        raise OtherTenant(f"model {name} is tenant {model.tenant}'s; worker {principal.actor_id} serves: {served}")
    if model is None or not sees(principal, model):
        raise ModelUnknown(f"there is no model {name}; list the models to see what there is")
    return model


async def locked(rows: ModelRows, name: ModelName) -> Model:
    """For those whose right is another than a publisher's. Raises InvalidArgument, ModelUnknown."""
    _check_name(name)
    model = await rows.locked(name)
    if model is None:
        raise _none_to_change(name)
    return model


def _none_to_change(name: ModelName) -> ModelUnknown:
    return ModelUnknown(f"there is no model {name}; create it first")


def _check_name(name: ModelName) -> None:
    if faults := model_faults(name):
        raise InvalidArgument("; ".join(faults))
