"""Which rules of the routing policy a request falls under, and what they come to.

Pure. A policy is an ordered list of rules; those that match apply in order, and what a later one sets replaces what an earlier
one did; its selectors of workers are added up. Never decides among workers: `placement.routing.policy` does, by the Route made
here.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Protocol

from placement.types import Strategy, Weights
from runtime.errors import InvalidArgument
from runtime.ids import ModelName, Region, TenantId, WorkerId

STANDARD = 1
"""The priority class of what no rule gives another: 0 comes before it, 2 after it."""

LAST_CLASS = 2
MAX_RULES = 256
MAX_LISTED = 64
"""Patterns, selectors, flags and names in one list of a rule."""

MAX_SELECTORS = 1_024
"""In a whole policy: a request may fall under every rule, and all of its selectors are told apart at every decision."""

MAX_NAME = 128
MAX_WEIGHT = 100.0
MAX_SHARE = 1_000_000
WEIGHT_NAMES = frozenset(each.name for each in fields(Weights))

MAX_FALLBACKS = 8
"""Listed; how many of them one request may ask is the gateway's to say."""

NOBODY_INSTEAD = "none"
"""Alone in a list of fallbacks, it takes those of earlier rules away."""

MIN_HEDGE_QUANTILE, MAX_HEDGE_QUANTILE = 0.5, 0.999


class Cause(enum.Enum):
    """Why a model did not answer, as far as another one might."""

    FAILURE = "failure"
    """Nobody who has it can answer: unreachable, broken, not loaded in time."""
    OVERLOAD = "overload"
    """Everybody who has it is full."""
    CONTEXT = "context"
    """Prompt and answer are more tokens than it takes."""


ALL_CAUSES = frozenset(Cause)


class Described(Protocol):
    """What a selector looks at: a worker, or its seat in the view."""

    @property
    def worker_id(self) -> WorkerId: ...

    @property
    def region(self) -> Region: ...

    @property
    def tiers(self) -> frozenset[str]: ...

    @property
    def labels(self) -> frozenset[str]: ...


@dataclass(frozen=True, slots=True)
class WorkerSelector:
    """All that is given must hold; what is empty matches everybody."""

    worker_ids: frozenset[WorkerId] = frozenset()
    regions: frozenset[Region] = frozenset()
    tiers: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    """All of them."""

    def matches(self, worker: Described) -> bool:
        return (
            (not self.worker_ids or worker.worker_id in self.worker_ids)
            and (not self.regions or worker.region in self.regions)
            and (not self.tiers or bool(self.tiers & worker.tiers))
            and self.labels <= worker.labels
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """None and empty fields leave things as they are."""

    name: str = ""
    tenants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    strategy: Strategy | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    """By the names of `Weights`' fields."""
    shadow: Strategy | None = None
    unshadowed: bool = False
    """Takes the shadow of earlier rules away."""
    deny: tuple[WorkerSelector, ...] = ()
    allow: tuple[WorkerSelector, ...] = ()
    prefer: tuple[WorkerSelector, ...] = ()
    cross_region: bool | None = None
    priority_class: int | None = None
    share: int = 0
    flags: Mapping[str, bool] = field(default_factory=dict)
    fallbacks: tuple[str, ...] | None = None
    """Models, or versions as `model@version`, asked in this order; an empty one takes those of earlier rules away."""
    fallback_on: frozenset[Cause] = frozenset()
    hedge_quantile: float | None = None
    sticky_versions: bool | None = None
    auto_models: tuple[str, ...] = ()

    def matches(self, tenant: TenantId, model: ModelName, region: Region) -> bool:
        return named(self.tenants, tenant) and named(self.models, model) and named(self.regions, region)

    @property
    def detours(self) -> bool:
        """Whether a request under it may be asked of more than the one worker that is chosen for it."""
        return bool(self.fallbacks or self.hedge_quantile)


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    generation: int = 0
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """What the rules come to for one tenant, model and region. Hashable, so that it can be a key."""

    strategy: Strategy = Strategy.AFFINITY
    weights: Weights = field(default_factory=Weights)
    shadow: Strategy | None = None
    deny: tuple[WorkerSelector, ...] = ()
    allow: tuple[WorkerSelector, ...] = ()
    """Empty: everybody who is not denied. Else one of them must match as well."""
    prefer: tuple[WorkerSelector, ...] = ()
    """`affinity` weighs it by `weights.preferred`; the other strategies choose among these first, while one has room."""
    cross_region: bool = False
    priority_class: int = STANDARD
    share: int = 1
    flags: frozenset[str] = frozenset()
    """Those that are on."""
    fallbacks: tuple[str, ...] = ()
    """Who is asked where the model does not answer for one of the causes."""
    fallback_on: frozenset[Cause] = ALL_CAUSES
    hedge_quantile: float = 0.0
    """A second worker is asked once the first takes longer than so many of its recent requests did; 0: never."""
    sticky_versions: bool = False
    """Requests of one API key keep to one of an alias' versions."""
    auto_models: tuple[str, ...] = ()
    """Among whom "auto" is chosen, those of an earlier pattern first; empty: all."""
    rules: tuple[str, ...] = ()
    """Names of those that matched, for people."""


DEFAULT_ROUTE = Route()


def route_for(policy: RoutingPolicy, tenant: TenantId, model: ModelName, region: Region, base: Route = DEFAULT_ROUTE) -> Route:
    """What holds for these; `base` where no rule says anything."""
    route = base
    for number, rule in enumerate(policy.rules, 1):
        if rule.matches(tenant, model, region):
            route = _under(route, rule, rule.name or f"rule {number}")
    return route


def checked(policy: RoutingPolicy) -> RoutingPolicy:
    """The policy, if it can be kept and followed. Raises InvalidArgument, which names the rule."""
    if len(policy.rules) > MAX_RULES:
        raise InvalidArgument(f"{len(policy.rules)} rules are too many; a routing policy has at most {MAX_RULES}")
    for number, rule in enumerate(policy.rules, 1):
        if (wrong := _wrong(rule)) is not None:
            raise InvalidArgument(f"rule {number}{f' ({rule.name[:MAX_NAME]!r})' if rule.name else ''}: {wrong}")
    selectors = sum(len(rule.deny) + len(rule.allow) + len(rule.prefer) for rule in policy.rules)
    if selectors > MAX_SELECTORS:
        raise InvalidArgument(f"{selectors} selectors of workers are too many; a policy has at most {MAX_SELECTORS} in all")
    return policy


def _under(route: Route, rule: Rule, name: str) -> Route:
    """The route, with this rule applied."""
    on = {flag for flag, is_on in rule.flags.items() if is_on}
    return replace(
        route,
        strategy=rule.strategy or route.strategy,
        weights=replace(route.weights, **rule.weights),
        shadow=None if rule.unshadowed else rule.shadow or route.shadow,
        deny=route.deny + rule.deny,
        allow=route.allow + rule.allow,
        prefer=route.prefer + rule.prefer,
        cross_region=route.cross_region if rule.cross_region is None else rule.cross_region,
        priority_class=route.priority_class if rule.priority_class is None else rule.priority_class,
        share=rule.share or route.share,
        flags=frozenset(route.flags - rule.flags.keys() | on),
        fallbacks=route.fallbacks if rule.fallbacks is None else rule.fallbacks,
        fallback_on=rule.fallback_on or route.fallback_on,
        hedge_quantile=route.hedge_quantile if rule.hedge_quantile is None else rule.hedge_quantile,
        sticky_versions=route.sticky_versions if rule.sticky_versions is None else rule.sticky_versions,
        auto_models=rule.auto_models or route.auto_models,
        rules=(*route.rules, name),
    )


def _wrong(rule: Rule) -> str | None:
    """What is wrong with it, if anything is."""
    if len(rule.name) > MAX_NAME:
        return f"a name of {len(rule.name)} characters is too long; at most {MAX_NAME} are taken"
    for what, listed in _lists(rule):
        if len(listed) > MAX_LISTED:
            return f"{len(listed)} {what} are too many; at most {MAX_LISTED} are taken"
        if any(not 0 < len(each) <= MAX_NAME for each in listed if isinstance(each, str)):
            return f"one of its {what} is empty or longer than {MAX_NAME} characters"
    for name, weight in rule.weights.items():
        if name not in WEIGHT_NAMES:
            return f"{name!r} is no weight; these are: {', '.join(sorted(WEIGHT_NAMES))}"
        if not math.isfinite(weight) or not 0.0 <= weight <= MAX_WEIGHT:
            return f"weight {name} is {weight:g}; it lies between 0 and {MAX_WEIGHT:g}"
    if rule.priority_class is not None and not 0 <= rule.priority_class <= LAST_CLASS:
        return f"priority class {rule.priority_class} is none; 0 comes first, 1 is the standard, {LAST_CLASS} comes last"
    if not 0 <= rule.share <= MAX_SHARE:
        return f"a share of {rule.share} is none; it lies between 0, which leaves it as it is, and {MAX_SHARE}"
    return _wrong_fallbacks(rule.fallbacks or ()) or _wrong_hedge(rule.hedge_quantile)


def _wrong_fallbacks(fallbacks: tuple[str, ...]) -> str | None:
    if len(fallbacks) > MAX_FALLBACKS:
        return f"{len(fallbacks)} fallbacks are too many; at most {MAX_FALLBACKS} are taken"
    if NOBODY_INSTEAD in fallbacks:
        return f"{NOBODY_INSTEAD!r} among fallbacks means that there are none, and stands alone"
    for each in fallbacks:
        model, at, version = each.partition("@")
        if not model or bool(at) is not bool(version) or "@" in version or "*" in each or "?" in each:
            return f"fallback {each!r} names no model; it is written 'model', 'model@2' or 'model@alias'"
    repeated = next((each for each in fallbacks if fallbacks.count(each) > 1), None)
    return None if repeated is None else f"fallback {repeated!r} is listed twice"


def _wrong_hedge(quantile: float | None) -> str | None:
    if not quantile or MIN_HEDGE_QUANTILE <= quantile <= MAX_HEDGE_QUANTILE:
        return None
    return (
        f"a hedge_quantile of {quantile:g} is none; it lies between {MIN_HEDGE_QUANTILE:g} and {MAX_HEDGE_QUANTILE:g}, and 0"
        " means never"
    )


def _lists(rule: Rule) -> list[tuple[str, Collection[object]]]:
    """Everything of a rule that could be too long, and what to call it."""
    named: list[tuple[str, Collection[object]]] = [
        ("tenants", rule.tenants),
        ("models", rule.models),
        ("regions", rule.regions),
        ("flags", rule.flags),
        ("fallbacks", rule.fallbacks or ()),
        ("auto_models", rule.auto_models),
    ]
    for kind in ("deny", "allow", "prefer"):
        selectors: tuple[WorkerSelector, ...] = getattr(rule, kind)
        named.append((f"{kind} selectors", selectors))
        for each in selectors:
            named += [
                (f"worker ids of a {kind} selector", each.worker_ids),
                (f"regions of a {kind} selector", each.regions),
                (f"tiers of a {kind} selector", each.tiers),
                (f"labels of a {kind} selector", each.labels),
            ]
    return named


def named(patterns: tuple[str, ...], name: str) -> bool:
    """Whether one of the patterns is for this name; without any they are for every name."""
    # Only * and ? are special here; brackets are letters.
    return not patterns or any(fnmatchcase(name, pattern.replace("[", "[[]")) for pattern in patterns)
