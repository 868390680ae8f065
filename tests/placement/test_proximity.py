"""How far regions are from one another."""

from __future__ import annotations

from itertools import permutations

from placement.proximity import distances
from runtime.ids import Region
from runtime.regions import AFRICA, ASIA, EUROPE, NORTH_AMERICA, REGIONS


def test_home_is_nowhere_and_everybody_else_is_somewhere() -> None:
    for home in REGIONS:
        found = distances(home, REGIONS, {})
        assert found[home] == 0.0
        assert all(0.0 < found[region] < 1.0 for region in REGIONS if region != home)


def test_the_table_knows_every_pair_both_ways() -> None:
    unknown = distances(EUROPE, [Region("mars")], {})[Region("mars")]
    for one, other in permutations(REGIONS, 2):
        assert distances(one, [other], {})[other] == distances(other, [one], {})[one] != unknown


def test_what_was_measured_comes_before_the_table() -> None:
    assert distances(EUROPE, [ASIA, AFRICA], {})[ASIA] > distances(EUROPE, [ASIA, AFRICA], {})[AFRICA]
    measured = distances(EUROPE, [ASIA, AFRICA], {ASIA: 20.0})
    assert measured[ASIA] < measured[AFRICA]


def test_who_is_unknown_is_farther_than_anybody() -> None:
    found = distances(NORTH_AMERICA, [*REGIONS, Region("local")], {})
    assert max(found, key=lambda region: found[region]) == "local"
