"""The nouns of leading: groups of regions, who leads one, and what is asked of a scheduler that does not lead."""

from __future__ import annotations

import re
from dataclasses import dataclass

from runtime.errors import InvalidArgument
from runtime.ids import NodeId, Region

MESH = "mesh"
"""The name of the group that leads every region that no other group names."""

LIMITS = "mesh:limits"
"""The name of those that stand to lead the limits of the mesh (`scheduler.limits`): no region's, and they lead none."""

_MAX_REGIONS = 32
_REGION = re.compile(r"[a-z0-9-]{1,32}")


@dataclass(frozen=True, slots=True)
class Group:
    """Regions that are led together. No regions: all that no other group names."""

    regions: tuple[Region, ...] = ()

    @property
    def name(self) -> str:
        """Its part of the election's keys."""
        return "+".join(self.regions) or MESH


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads which regions; none: every region that no other leader names."""

    scheduler_id: NodeId
    address: str
    regions: tuple[Region, ...]
    term: int
    """The create-revision of its key: grows with every election."""


def group_of(names: str) -> Group:
    """From comma-separated regions; none: the mesh's. Raises InvalidArgument."""
    regions = tuple(sorted({Region(name.strip()) for name in names.split(",") if name.strip()}))
    for region in regions:
        if not _REGION.fullmatch(region):
            raise InvalidArgument(f"{region!r} is no region; lower-case letters, digits and '-' are, up to 32 of them")
    if regions == (MESH,):
        raise InvalidArgument(f"{MESH!r} alone names no group of regions; give none, and all regions without a group are led")
    if len(regions) > _MAX_REGIONS:
        raise InvalidArgument(f"{len(regions)} regions are too many for one group; at most {_MAX_REGIONS} can be named")
    return Group(regions)


def regions_named(group: str) -> tuple[Region, ...]:
    """The regions of a group by its name in a key."""
    return () if group == MESH else tuple(Region(name) for name in group.split("+"))
