"""How far regions are from one another, for choosing among them when home has no place.

Pure. What was measured comes before the table; who is unknown to both is far. Never says whether another region may be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from runtime.ids import Region

HALF_FAR_MS = 100.0
"""A round trip of this much is half of the farthest: distance = rtt / (rtt + HALF_FAR_MS)."""

UNKNOWN_MS = 400.0

_TABLE_MS: Mapping[frozenset[str], float] = {
    frozenset(pair.split()): rtt_ms
    for pair, rtt_ms in {
        "asia north-america": 170.0,
        "asia europe": 180.0,
        "asia africa": 250.0,
        "asia south-america": 300.0,
        "asia oceania": 110.0,
        "asia middle-east": 110.0,
        "north-america europe": 90.0,
        "north-america africa": 220.0,
        "north-america south-america": 130.0,
        "north-america oceania": 170.0,
        "north-america middle-east": 180.0,
        "europe africa": 150.0,
        "europe south-america": 200.0,
        "europe oceania": 270.0,
        "europe middle-east": 110.0,
        "africa south-america": 310.0,
        "africa oceania": 330.0,
        "africa middle-east": 170.0,
        "south-america oceania": 290.0,
        "south-america middle-east": 290.0,
        "oceania middle-east": 220.0,
    }.items()
}
"""Round trips in ms between the usual data centres of two regions, rounded: of the order of what cloud providers publish. Only
their order matters, and only until a round trip was measured."""


def distances(home: Region, regions: Iterable[Region], measured_rtt_ms: Mapping[Region, float]) -> dict[Region, float]:
    """For each region 0 (here) to 1 (unreachably far)."""
    return {region: 0.0 if region == home else _distance(_rtt_ms(home, region, measured_rtt_ms)) for region in regions}


def _rtt_ms(home: Region, region: Region, measured_rtt_ms: Mapping[Region, float]) -> float:
    return measured_rtt_ms.get(region) or _TABLE_MS.get(frozenset((home, region)), UNKNOWN_MS)


def _distance(rtt_ms: float) -> float:
    return rtt_ms / (rtt_ms + HALF_FAR_MS)
