"""The nouns of limits, as everything between this room's codec and its SQL speaks of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

from registry.access.types import OtherTenant
from runtime.errors import Code, PenstockError
from runtime.ids import KeyId, ModelName, TenantId

LimitId = NewType("LimitId", str)
"""Says whom and what a limit is for: two limits with one id cannot be."""

EVERYBODY = TenantId("")
EVERY_KEY = KeyId("")
EVERY_MODEL = ModelName("")


class LimitUnknown(PenstockError, code=Code.NOT_FOUND, reason="LIMIT_UNKNOWN"):
    """No such limit."""


class SubjectUnknown(PenstockError, code=Code.NOT_FOUND, reason="LIMIT_SUBJECT_UNKNOWN"):
    """There is no such tenant, or no such live key, to set a limit on."""


class LimitsFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="LIMITS_FULL"):
    """As many limits as there may be."""


class OperatorsAlone(OtherTenant, code=Code.PERMISSION_DENIED, reason="OPERATORS_ALONE"):
    """This limit is not a tenant's to set or to lift."""


class LimitScope(enum.Enum):
    """Who shares one allowance."""

    TOGETHER = "together"
    """All that the limit is for."""
    EACH_TENANT = "each_tenant"
    EACH_KEY = "each_key"


class WhenUnsure(enum.Enum):
    """What a gateway does that cannot learn what others have used."""

    SHARE = "share"
    REFUSE = "refuse"


class Setter(enum.Enum):
    """On whose behalf a limit was set."""

    OPERATOR = "operator"
    OWNER = "owner"


@dataclass(frozen=True, slots=True)
class LimitSubject:
    """Whom and what a limit is for, and who set it."""

    tenant: TenantId = EVERYBODY
    key_id: KeyId = EVERY_KEY
    model: ModelName = EVERY_MODEL
    scope: LimitScope = LimitScope.TOGETHER
    set_by: Setter = Setter.OWNER


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much; 0 = not limited, for each of these."""

    requests_per_s: float = 0.0
    burst: int = 0
    """0 = what a second allows."""
    tokens_per_min: int = 0
    concurrent_requests: int = 0
    requests_per_day: int = 0
    tokens_per_day: int = 0


@dataclass(frozen=True, slots=True)
class LimitWish:
    """A limit as someone asks for it."""

    subject: LimitSubject
    amounts: Amounts
    when_unsure: WhenUnsure = WhenUnsure.SHARE
    limit_id: str = ""
    """As the caller knows it; empty: it does not say."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit as it stands."""

    limit_id: LimitId
    subject: LimitSubject
    amounts: Amounts
    when_unsure: WhenUnsure
    generation: int
    """Grows whenever it is changed."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How many limits there are beside one that is to be set, of those that operators set or of those that owners did."""

    in_all: int = 0
    of_tenant: int = 0
    side_by_side: int = 0
    """With the same tenant and the same key, or without one like it."""
