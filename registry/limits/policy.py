"""What limits accept, how many there may be, and what a limit is called.

Pure: values in, values out. A "no" is what is wrong, in words; who asks makes an error of it.

Half of each bound is the operators' and half the tenants' owners', so that neither can take the other's room. What one key's
requests may fall under is thereby bounded too: those on everybody, on its tenant and on the key itself are 256 at most.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import fields

from registry.limits.types import Amounts, Counted, LimitId, LimitScope, LimitSubject, LimitWish

MAX_IN_ALL = 5_000
MAX_OF_TENANT = 500
MAX_ON_EVERYBODY = 64
MAX_ON_TENANT = 64
MAX_ON_KEY = 32
MAX_OF_ONE_KEYS_REQUESTS = MAX_ON_EVERYBODY + 2 * MAX_ON_TENANT + 2 * MAX_ON_KEY

LEAST_PER_S, MOST_PER_S = 0.0001, 1e9
MOST_BURST = 2**31 - 1
MOST_A_TIME = 10**15
"""Tokens or requests in a minute or a day: more than any mesh has, and a whole number in every language."""

_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_LIMIT_ID = re.compile(r"[0-9a-f]{16}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def limit_id_of(subject: LimitSubject) -> LimitId:
    """The same for the same subject, in every registry."""
    said = (subject.tenant, subject.key_id, subject.model, subject.scope.value, subject.set_by.value)
    named = "\n".join(said)  # no name has a line break
    return LimitId(hashlib.sha256(named.encode()).hexdigest()[:16])


def is_limit_id(text: str) -> bool:
    return _LIMIT_ID.fullmatch(text) is not None


def tenant_faults(tenant: str) -> list[str]:
    if _TENANT.fullmatch(tenant):
        return []
    return [f"tenant {_shown(tenant)}: up to 63 of a-z 0-9 - are allowed, starting with a letter or digit"]


def limit_faults(wish: LimitWish) -> list[str]:
    """All that keeps this limit from being set."""
    return [*_subject_faults(wish.subject), *_amount_faults(wish.amounts)]


def id_fault(wish: LimitWish, found: LimitId) -> str | None:
    """Whether the caller means another limit than it describes."""
    if wish.limit_id in ("", found):
        return None
    return f"limit_id {_shown(wish.limit_id)} is not this subject's, which is {found}; leave it empty, or set what it names"


def described(subject: LimitSubject, amounts: Amounts) -> str:
    """In words, for the trail."""
    who = f"key {subject.key_id} of tenant {subject.tenant}" if subject.key_id else f"tenant {subject.tenant}"
    whose = [who if subject.tenant else "everybody"]
    if subject.scope is not LimitScope.TOGETHER:
        whose.append(_each(subject))
    if subject.model:
        whose.append(f"model {subject.model}")
    much = [f"{field.name} {amount}" for field in fields(amounts) if (amount := getattr(amounts, field.name))]
    return f"{', '.join(whose)}: {', '.join(much)}"


def fullness(subject: LimitSubject, counted: Counted) -> str | None:
    """Why there is no room for one more on this subject."""
    if counted.in_all >= MAX_IN_ALL:
        return f"there are {counted.in_all} limits, which is the most there can be; remove some"
    if subject.tenant and counted.of_tenant >= MAX_OF_TENANT:
        return f"tenant {subject.tenant} has {counted.of_tenant} limits, which is the most it may have; remove some"
    if subject.key_id:
        most, whose = MAX_ON_KEY, f"key {subject.key_id}"
    elif subject.tenant:
        most, whose = MAX_ON_TENANT, f"tenant {subject.tenant}, not counting those on its keys,"
    else:
        most, whose = MAX_ON_EVERYBODY, "everybody"
    if counted.side_by_side >= most:
        return f"there are {most} limits on {whose} already, and a request has to fit into all of them; remove some"
    return None


def _subject_faults(subject: LimitSubject) -> Iterator[str]:
    if subject.tenant:
        yield from tenant_faults(subject.tenant)
    if subject.key_id and not _KEY_ID.fullmatch(subject.key_id):
        yield f"key_id {_shown(subject.key_id)}: 16 hex digits are expected, as the list of keys shows them"
    if subject.model and not _MODEL.fullmatch(subject.model):
        yield (
            f"model name {_shown(subject.model)}: up to 128 of A-Z a-z 0-9 . _ - are allowed, starting with a letter or digit;"
            " empty for all models"
        )
    if subject.key_id and subject.scope is not LimitScope.TOGETHER:
        yield f"a limit on one key for {_each(subject)}: leave out the scope, or the key"
    elif subject.tenant and subject.scope is LimitScope.EACH_TENANT:
        yield "a limit on one tenant for each tenant: leave out the scope, or the tenant"


def _amount_faults(amounts: Amounts) -> Iterator[str]:
    per_s = amounts.requests_per_s
    if per_s and not (math.isfinite(per_s) and LEAST_PER_S <= per_s <= MOST_PER_S):
        yield f"{per_s:g} requests/s: {LEAST_PER_S:g} to {MOST_PER_S:g} are allowed, or 0 for no limit"
    if amounts.burst and not per_s:
        yield f"a burst of {amounts.burst} without a rate: give requests_per_s too"
    for name in ("burst", "concurrent_requests"):
        if (number := getattr(amounts, name)) > MOST_BURST:
            yield f"{name} {number}: at most {MOST_BURST} are allowed"
    for name in ("tokens_per_min", "requests_per_day", "tokens_per_day"):
        if (number := getattr(amounts, name)) > MOST_A_TIME:
            yield f"{name} {number}: at most {MOST_A_TIME} are allowed"
    if amounts == Amounts():
        yield (
            "the limit limits nothing; give at least one of requests_per_s, tokens_per_min, concurrent_requests,"
            " requests_per_day and tokens_per_day"
        )


def _each(subject: LimitSubject) -> str:
    return subject.scope.value.replace("_", " ")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")
