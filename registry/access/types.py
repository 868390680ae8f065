"""Who calls: a node by its certificate, a person by a session, a program by an API key; and what that allows."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from runtime.errors import Code, PenstockError
from runtime.identity import Role
from runtime.ids import DEFAULT_TENANT, EVERY_TENANT, ModelName, NodeId, TenantId


class CredentialsMissing(PenstockError, code=Code.UNAUTHENTICATED, reason="CREDENTIALS_MISSING"):
    """Nobody said who calls."""


class CredentialsRefused(PenstockError, code=Code.UNAUTHENTICATED, reason="CREDENTIALS_REFUSED"):
    """What was shown proves nothing: it is unknown, has ended, or cannot be read."""


class MoreThanOwn(PenstockError, code=Code.PERMISSION_DENIED, reason="MORE_THAN_OWN"):
    """The caller may do this, but not hand out rights that it does not have itself."""


class ScopeRequired(PenstockError, code=Code.PERMISSION_DENIED, reason="SCOPE_REQUIRED"):
    """The caller is known and may not do this."""


class OtherTenant(PenstockError, code=Code.PERMISSION_DENIED, reason="OTHER_TENANT"):
    """It is another tenant's."""


class Scope(enum.Enum):
    """One right. What each role has of them is `policy.py`'s."""

    INFER = "infer"
    MODELS_READ = "models:read"
    MODELS_PUBLISH = "models:publish"
    """Create, upload, publish, share, move aliases, withdraw."""
    MODELS_LOAD = "models:load"
    """Say where models run."""
    SIGNERS_WRITE = "signers:write"
    FILES_FETCH = "files:fetch"
    """Workers alone."""
    FILES_ADMIN = "files:admin"
    """Quotas, garbage, master keys."""
    ALIASES_SETTLE = "aliases:settle"
    """Schedulers alone."""
    ACCOUNTS_READ = "accounts:read"
    ACCOUNTS_WRITE = "accounts:write"
    TENANTS_WRITE = "tenants:write"
    KEYS_RESOLVE = "keys:resolve"
    """Gateways alone."""
    NODES_READ = "nodes:read"
    NODES_WRITE = "nodes:write"
    NODES_RENEW = "nodes:renew"
    AUDIT_READ = "audit:read"
    INCIDENTS_REPORT = "incidents:report"


class ActorKind(enum.Enum):
    NODE = "node"
    USER = "user"
    KEY = "key"
    NOBODY = "nobody"


class AccountRole(enum.Enum):
    """What a person or key is to its tenant."""

    OWNER = "owner"
    PUBLISHER = "publisher"
    CALLER = "caller"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one RPC."""

    kind: ActorKind
    actor_id: str
    scopes: frozenset[Scope]
    tenant: TenantId | None = None
    """None: of every tenant, as operators and services are."""
    allowed_models: frozenset[ModelName] = frozenset()
    """Empty: every model."""
    node_role: Role | None = None
    node_id: NodeId | None = None
    node_tenants: frozenset[TenantId] = frozenset()
    """Whose models a worker may load; empty: everybody's."""
    role: AccountRole | None = None
    request_id: str = ""

    def require(self, scope: Scope, tenant: TenantId | None = None) -> None:
        """Raises ScopeRequired; OtherTenant where it is about a tenant that is not the caller's."""
        if scope not in self.scopes:
            raise ScopeRequired(f"this needs the right {scope.value!r}, which {self.kind.value} {self.actor_id} does not have")
        if tenant is not None and self.tenant is not None and tenant != self.tenant:
            raise OtherTenant(f"this is tenant {tenant}'s; {self.kind.value} {self.actor_id} belongs to {self.tenant}")

    def tenant_or(self, wanted: str) -> TenantId:
        """The tenant that is meant: the one named, else the caller's own, else the default one. Raises OtherTenant."""
        chosen = TenantId(wanted) or self.tenant or DEFAULT_TENANT
        if self.tenant is not None and chosen != self.tenant:
            raise OtherTenant(f"this is tenant {chosen}'s; {self.kind.value} {self.actor_id} belongs to {self.tenant}")
        return chosen

    def sees(self, tenant: TenantId, shared_with: frozenset[str] = frozenset()) -> bool:
        """Whether what belongs to this tenant, and is shared with those, is the caller's to see."""
        return self.tenant is None or self.tenant == tenant or self.tenant in shared_with or EVERY_TENANT in shared_with

    def may_load(self, tenant: TenantId, shared_with: frozenset[str] = frozenset()) -> bool:
        """Whether a worker may have a model's files: it serves some tenant that may call the model."""
        if not self.node_tenants or EVERY_TENANT in shared_with:
            return True
        return bool(self.node_tenants & ({tenant} | shared_with))
