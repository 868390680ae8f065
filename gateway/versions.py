"""What a model's names mean: which version a request gets that names a number, an alias, or nothing.

Pure: the roll that shares requests out is an argument. A table is made once for each notice of the registry; on the way of a
request it is only looked into. A target that is still being warmed changes nothing. What nobody has named stays as it was asked
for: whether the fleet has it is the router's to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from placement.candidates import hash64
from runtime.errors import Code, PenstockError
from runtime.ids import EVERY_TENANT, ModelName, ModelVersion
from runtime.notices import STABLE, ModelNotice

NEWEST = ModelVersion("")
_WHOLE = 100


class VersionGone(PenstockError, code=Code.NOT_FOUND, reason="VERSION_GONE"):
    """Nobody may be served this version any more. Begins with Triton's sentence: its clients match on that."""


class AliasUnsettled(PenstockError, code=Code.UNAVAILABLE, reason="ALIAS_UNSETTLED"):
    """The alias was made, and its first target is still being warmed."""


@dataclass(frozen=True, slots=True)
class VersionTable:
    """One model's names, and who may use them."""

    model: ModelName
    tenants: frozenset[str]
    everybody: bool
    named: Mapping[str, ModelVersion]
    """Aliases; empty while the first target is being warmed."""
    shares: tuple[tuple[float, ModelVersion], ...]
    """Up to which roll a request that names nothing gets which version."""
    rest: ModelVersion
    """What it gets beyond the shares."""
    withdrawn: frozenset[ModelVersion]
    plain: ModelVersion | None
    """What every request gets that names nothing; None: that has to be looked at."""

    def allows(self, tenant: str) -> bool:
        return self.everybody or tenant in self.tenants

    def version(self, wanted: str, roll: float) -> ModelVersion:
        """The version meant, NEWEST for whichever that is. `roll` in [0, 1). Raises VersionGone, AliasUnsettled."""
        if wanted:
            return self.pinned(wanted)
        for end, version in self.shares:
            if roll < end:
                return version
        return self.mostly()

    def mostly(self) -> ModelVersion:
        """What most requests get that name nothing. Raises VersionGone."""
        return self._served(self.rest)

    def pinned(self, wanted: str) -> ModelVersion:
        """What this number or alias means. Raises VersionGone, AliasUnsettled."""
        target = self.named.get(wanted)
        if target is None:
            return self._served(ModelVersion(wanted))
        if not target:
            raise AliasUnsettled(
                f"alias {wanted[:64]!r} of model {self.model!r} has no target yet: its first one is being warmed; try again",
                retry_after_s=1.0,
            )
        return self._served(target)

    def _served(self, version: ModelVersion) -> ModelVersion:
        if version in self.withdrawn:
            raise gone(self.model, version)
        return version


def gone(model: str, version: str) -> VersionGone:
    return VersionGone(f"Request for unknown model: '{model}' version {version} is not found: it was withdrawn; name another")


def table_of(notice: ModelNotice) -> VersionTable:
    """A weighted alias whose target was withdrawn gives its share to the rest. `stable` does not give way: moving it is for
    whoever owns the model to decide."""
    named = {target.alias: target.version for target in notice.aliases}
    shares: list[tuple[float, ModelVersion]] = []
    end = 0
    for target in sorted(notice.aliases, key=lambda each: each.alias):
        served = target.version and target.version not in notice.withdrawn_versions
        if target.alias != STABLE and target.weight > 0 and served:
            end = min(_WHOLE, end + target.weight)
            shares.append((end / _WHOLE, target.version))
    rest = named.get(STABLE, NEWEST)
    plain = rest if not shares and rest not in notice.withdrawn_versions else None
    tenants = frozenset({str(notice.tenant)}) | notice.shared_with
    everybody = EVERY_TENANT in notice.shared_with
    return VersionTable(notice.model, tenants, everybody, named, tuple(shares), rest, notice.withdrawn_versions, plain)


def roll_of(model: str, session_key: str) -> float:
    """In [0, 1), the same for a session wherever it comes in: it keeps its version while the weights only move past it."""
    return (hash64(f"{model}\0{session_key}") >> 11) * 2.0**-53


def split_name(name: str) -> tuple[str, str]:
    """`model@alias` or `model@3` as model and version. No model's name has an @."""
    model, _, version = name.partition("@")
    return model, version
