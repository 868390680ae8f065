"""Between the wire's messages and the nouns of accounts. Decides nothing but what cannot be expressed inside."""

from __future__ import annotations

from penstock.registry.v1 import accounts_pb2

from registry.access.types import AccountRole, Principal, Scope
from registry.accounts.policy import login_name, whole_password
from registry.accounts.types import ApiKey, KeyWish, RateLimit, Session, Tenant, User, UserChange, UserWish
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, TenantId


def tenant_of(name: str) -> TenantId | None:
    return TenantId(name) if name else None


def key_wish_of(request: accounts_pb2.CreateKeyRequest, tenant: TenantId) -> KeyWish:
    """Raises InvalidArgument on a role or scope that does not exist."""
    return KeyWish(
        tenant=tenant,
        name=request.name,
        role=_role(request.role),
        allowed_models=tuple(ModelName(model) for model in request.allowed_models),
        rate_limit=RateLimit(request.rate_limit.requests_per_s, request.rate_limit.burst),
        lifetime_s=request.lifetime_s,
        scopes=frozenset(_scope(scope) for scope in request.scopes),
    )


def user_wish_of(request: accounts_pb2.CreateUserRequest, tenant: TenantId) -> UserWish:
    """Raises InvalidArgument on a role that does not exist."""
    return UserWish(tenant, login_name(request.name), _role(request.role), whole_password(request.password))


def change_of(request: accounts_pb2.UpdateUserRequest) -> UserChange:
    """Raises InvalidArgument where nothing is to change, or to a role that does not exist."""
    change = UserChange(
        role=_role(request.role) if request.HasField("role") else None,
        password=whole_password(request.password) if request.HasField("password") else None,
        disabled=request.disabled if request.HasField("disabled") else None,
    )
    if change == UserChange():
        raise InvalidArgument("nothing is to change; give a role, a password or disabled")
    return change


def tenant_message(tenant: Tenant) -> accounts_pb2.Tenant:
    return accounts_pb2.Tenant(tenant=tenant.tenant, created_at_ms=tenant.created_at_ms)


def user_message(user: User) -> accounts_pb2.User:
    return accounts_pb2.User(
        user_id=user.user_id,
        tenant=user.tenant,
        name=user.name,
        role=user.role.value,
        created_at_ms=user.created_at_ms,
        disabled=bool(user.disabled_at_ms),
        last_login_at_ms=user.last_login_at_ms,
    )


def session_message(session: Session) -> accounts_pb2.LogInResponse:
    return accounts_pb2.LogInResponse(
        session=session.token, expires_at_ms=session.expires_at_ms, user=user_message(session.user)
    )


def caller_message(principal: Principal) -> accounts_pb2.WhoAmIResponse:
    role = principal.role or principal.node_role
    return accounts_pb2.WhoAmIResponse(
        kind=principal.kind.value,
        id=principal.actor_id,
        tenant=principal.tenant or "",
        role=role.value if role else "",
        scopes=sorted(scope.value for scope in principal.scopes),
    )


def key_message(key: ApiKey) -> accounts_pb2.ApiKey:
    return accounts_pb2.ApiKey(
        key_id=key.key_id,
        tenant=key.tenant,
        name=key.name,
        role=key.role.value,
        allowed_models=key.allowed_models,
        rate_limit=accounts_pb2.RateLimit(requests_per_s=key.rate_limit.requests_per_s, burst=key.rate_limit.burst),
        created_at_ms=key.created_at_ms,
        expires_at_ms=key.expires_at_ms,
        revoked_at_ms=key.revoked_at_ms,
        scopes=sorted(scope.value for scope in key.scopes),
        last_used_at_ms=key.last_used_at_ms,
        rotated_to=key.rotated_to,
    )


def _role(text: str) -> AccountRole:
    try:
        return AccountRole(text)
    except ValueError as error:
        known = ", ".join(role.value for role in AccountRole)
        raise InvalidArgument(f"role {text[:40]!r}: one of {known} is expected") from error


def _scope(text: str) -> Scope:
    try:
        return Scope(text)
    except ValueError as error:
        known = ", ".join(scope.value for scope in Scope)
        raise InvalidArgument(f"scope {text[:40]!r}: some of {known} are expected") from error
