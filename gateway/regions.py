"""From which region a request is, and how far the others are from here.

A request is from the gateway's own region, unless callers may say another: then metadata `x-penstock-region` does. Without it,
and where callers' addresses count, it is from the region of its caller, if a worker is there. Distances come from the round
trips of links, region by region. Never decides whether a request may leave its region: the routing policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median

from gateway.whereabouts import Whereabouts
from placement.proximity import distances
from runtime.errors import InvalidArgument
from runtime.ids import Region
from runtime.regions import REGIONS

HEADER = "x-penstock-region"


class Regions:
    """`known` tells every region of the mesh that this gateway has heard of."""

    def __init__(
        self,
        home: Region,
        known: Callable[[], Iterable[Region]],
        *,
        header_allowed: bool = False,
        whereabouts: Whereabouts | None = None,
    ) -> None:
        """Without `whereabouts` it does not matter where callers are."""
        self.home, self._known = home, known
        self._header_allowed, self._whereabouts = header_allowed, whereabouts

    def of(self, headers: Mapping[str, str | bytes], address: str = "") -> Region:
        """Where a request with this metadata, from this address, is to be routed from.

        Raises InvalidArgument for a region that nobody knows. One that is known and has no workers is the caller's choice.
        """
        if self._header_allowed and (named := headers.get(HEADER)):
            return self._named(named)
        if self._whereabouts is None or not address:
            return self.home
        return self._whereabouts.region_of(address) or self.home

    def _named(self, named: str | bytes) -> Region:
        if named == self.home or named in REGIONS:
            return Region(str(named))
        known = sorted(self._known())
        if named not in known:
            raise InvalidArgument(
                f"{HEADER} names {named[:64]!r}, which is no region of this mesh; these are: {', '.join(known)}"
            )
        return Region(str(named))


def rtt_by_region(measured: Iterable[tuple[Region, float]]) -> dict[Region, float]:
    """The median of each region's round trips in ms; 0 is none."""
    trips: dict[Region, list[float]] = {}
    for region, rtt_ms in measured:
        if rtt_ms > 0:
            trips.setdefault(region, []).append(rtt_ms)
    return {region: median(each) for region, each in trips.items()}


def proximity(home: Region, known: Iterable[Region], rtt_ms: Mapping[Region, float]) -> dict[Region, float]:
    """How far each region is, 0 near to 1 far, beyond what it takes to reach workers here."""
    here_ms = rtt_ms.get(home, 0.0)
    beyond = {region: max(trip_ms - here_ms, 0.1) for region, trip_ms in rtt_ms.items()}
    return distances(home, known, beyond)
