"""A snapshot knows its versions and its faults."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.xds.snapshot import Reference, Resource, ResourceType, Snapshot

CLUSTER = Resource("c", b"cluster", frozenset({Reference(ResourceType.ENDPOINTS, "c")}))
MEMBERS = Resource("c", b"members")
LISTENER = Resource("l", b"listener", frozenset({Reference(ResourceType.ROUTES, "r")}))
ROUTES = Resource("r", b"routes", frozenset({Reference(ResourceType.CLUSTERS, "c")}))
WHOLE = {
    ResourceType.CLUSTERS: [CLUSTER],
    ResourceType.ENDPOINTS: [MEMBERS],
    ResourceType.LISTENERS: [LISTENER],
    ResourceType.ROUTES: [ROUTES],
}

resources = st.lists(
    st.builds(Resource, st.text(max_size=3), st.binary(max_size=3)), max_size=4, unique_by=lambda one: one.name
)


def test_a_whole_snapshot_has_no_faults() -> None:
    assert Snapshot.of(WHOLE).faults() == ()
    assert Snapshot.of({}).faults() == ()


def test_what_is_missing_is_named() -> None:
    for kind, name in ((ResourceType.ENDPOINTS, "c"), (ResourceType.ROUTES, "r"), (ResourceType.CLUSTERS, "c")):
        without = {other: found for other, found in WHOLE.items() if other is not kind}
        assert f"{kind.name} {name} is referred to and absent" in Snapshot.of(without).faults()


def test_what_nothing_refers_to_is_named() -> None:
    stray = WHOLE | {ResourceType.ENDPOINTS: [MEMBERS, Resource("stray", b"")]}
    assert Snapshot.of(stray).faults() == ("ENDPOINTS stray is there and nothing refers to it",)


def test_a_listener_or_cluster_may_stand_alone() -> None:
    more = WHOLE | {ResourceType.CLUSTERS: [CLUSTER, Resource("idle", b"")]}
    assert Snapshot.of(more).faults() == ()


def test_a_name_given_twice_is_named() -> None:
    twice = WHOLE | {ResourceType.LISTENERS: [LISTENER, LISTENER]}
    assert Snapshot.of(twice).faults() == ("LISTENERS l is there twice",)


@settings(deadline=None)
@given(resources)
def test_the_version_does_not_depend_on_order(found: list[Resource]) -> None:
    forwards = Snapshot.of({ResourceType.CLUSTERS: found})
    backwards = Snapshot.of({ResourceType.CLUSTERS: list(reversed(found))})
    assert forwards == backwards


@settings(deadline=None)
@given(resources, resources)
def test_equal_versions_mean_equal_content(first: list[Resource], second: list[Resource]) -> None:
    one, other = (Snapshot.of({ResourceType.ROUTES: found}) for found in (first, second))
    assert (one.versions == other.versions) == (one.resources == other.resources)


def test_a_change_touches_only_its_own_type() -> None:
    moved = Snapshot.of(WHOLE | {ResourceType.ENDPOINTS: [Resource("c", b"elsewhere")]})
    before = Snapshot.of(WHOLE)
    changed = [kind for kind in ResourceType if moved.versions[kind] != before.versions[kind]]
    assert changed == [ResourceType.ENDPOINTS]
