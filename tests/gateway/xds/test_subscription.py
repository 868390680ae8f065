"""What a stream is owed, as a table of the protocol's cases and as invariants over any conversation."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.xds.snapshot import Resource, ResourceType, Snapshot
from gateway.xds.subscription import Rejection, Reply, Request, Subscriptions

SECRETS, CLUSTERS, ENDPOINTS = ResourceType.SECRETS, ResourceType.CLUSTERS, ResourceType.ENDPOINTS
LISTENERS, ROUTES = ResourceType.LISTENERS, ResourceType.ROUTES


def snapshot(mark: str, members: str = "m", *, names: tuple[str, ...] = ("a", "b")) -> Snapshot:
    """Clusters and listeners marked by the first word, the others by the second."""
    marks = {SECRETS: members, CLUSTERS: mark, LISTENERS: mark, ENDPOINTS: members, ROUTES: members}
    return Snapshot.of({kind: [Resource(name, marks[kind].encode()) for name in names] for kind in ResourceType})


FIRST, SECOND = snapshot("1"), snapshot("2")


def only(replies: list[Reply]) -> Reply:
    (reply,) = replies
    return reply


def ack(reply: Reply, *names: str) -> Request:
    return Request(reply.kind, frozenset(names), reply.version, reply.nonce)


def nack(reply: Reply, running: str = "", detail: str = "no") -> Request:
    return Request(reply.kind, frozenset(), running, reply.nonce, detail)


def test_nothing_is_owed_before_it_is_asked_for() -> None:
    assert Subscriptions().due(FIRST) == []


def test_a_first_request_is_answered_whole() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    reply = only(stream.due(FIRST))
    assert (reply.kind, reply.version) == (CLUSTERS, FIRST.versions[CLUSTERS])
    assert [resource.name for resource in reply.resources] == ["a", "b"]
    assert stream.due(FIRST) == []


def test_a_new_stream_is_answered_though_envoy_has_the_version() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS, version=FIRST.versions[CLUSTERS]))
    assert only(stream.due(FIRST)).version == FIRST.versions[CLUSTERS]


def test_an_ack_settles() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    reply = only(stream.due(FIRST))
    assert not stream.settled(FIRST)
    assert stream.take(ack(reply)).acknowledged == reply.version
    assert stream.due(FIRST) == []
    assert stream.settled(FIRST)
    assert not stream.settled(SECOND)


def test_a_new_version_is_sent_unasked() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    stream.take(ack(only(stream.due(FIRST))))
    assert only(stream.due(SECOND)).version == SECOND.versions[CLUSTERS]


def test_a_nack_is_kept_and_the_same_version_not_sent_again() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    stream.take(ack(only(stream.due(FIRST))))
    refused = only(stream.due(SECOND))
    subscription = stream.take(nack(refused, FIRST.versions[CLUSTERS], "bad field"))
    assert subscription.rejected == Rejection(refused.version, "bad field")
    assert subscription.acknowledged == FIRST.versions[CLUSTERS]
    assert stream.due(SECOND) == []
    assert not stream.settled(SECOND)
    mended = only(stream.due(snapshot("3")))
    assert stream.take(ack(mended)).rejected is None


def test_a_stale_answer_says_nothing() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    old = only(stream.due(FIRST))
    new = only(stream.due(SECOND))
    for stale in (ack(old), nack(old)):
        subscription = stream.take(stale)
        assert (subscription.acknowledged, subscription.rejected) == (None, None)
    assert stream.due(SECOND) == []
    assert stream.take(ack(new)).acknowledged == new.version


def test_endpoints_are_those_that_were_named() -> None:
    stream = Subscriptions()
    stream.take(Request(ENDPOINTS, frozenset({"b"})))
    assert [resource.name for resource in only(stream.due(FIRST)).resources] == ["b"]


def test_a_longer_list_of_names_is_owed_at_once() -> None:
    stream = Subscriptions()
    stream.take(Request(ENDPOINTS, frozenset({"b"})))
    reply = only(stream.due(FIRST))
    stream.take(ack(reply, "a", "b"))
    assert [resource.name for resource in only(stream.due(FIRST)).resources] == ["a", "b"]


def test_a_stream_that_named_clusters_gets_no_others() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS, frozenset({"b"})))
    assert [resource.name for resource in only(stream.due(FIRST)).resources] == ["b"]
    stream.take(replace(ack(only(stream.due(SECOND))), names=frozenset()))
    assert only(stream.due(SECOND)).resources == ()


def test_a_star_is_everything() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS, frozenset({"*"})))
    assert len(only(stream.due(FIRST)).resources) == 2


def test_changed_clusters_bring_their_unchanged_endpoints() -> None:
    stream = Subscriptions()
    stream.take(Request(CLUSTERS))
    stream.take(Request(ENDPOINTS, frozenset({"a"})))
    for reply in stream.due(FIRST):
        stream.take(ack(reply, *(("a",) if reply.kind is ENDPOINTS else ())))
    assert FIRST.versions[ENDPOINTS] == SECOND.versions[ENDPOINTS]
    assert [reply.kind for reply in stream.due(SECOND)] == [CLUSTERS, ENDPOINTS]


def test_all_types_go_out_in_the_order_that_makes_before_it_breaks() -> None:
    stream = Subscriptions()
    for kind in reversed(ResourceType):
        stream.take(Request(kind, frozenset({"a"}) if not kind.whole else frozenset()))
    assert [reply.kind for reply in stream.due(FIRST)] == [SECRETS, CLUSTERS, ENDPOINTS, LISTENERS, ROUTES]


def test_nonces_are_never_used_twice_on_a_stream() -> None:
    stream = Subscriptions()
    for kind in ResourceType:
        stream.take(Request(kind))
    nonces = [reply.nonce for mark in "123" for reply in stream.due(snapshot(mark, mark))]
    assert len(nonces) == len(set(nonces)) == 15


@settings(deadline=None)
@given(st.data())
def test_any_conversation_ends_settled_once_envoy_accepts(data: st.DataObject) -> None:
    """Whatever Envoy asks, refuses and repeats: when the world stands still and it accepts, nothing stays owed."""
    stream, sent = Subscriptions(), [Reply(kind, "", "", ()) for kind in ResourceType]
    world = FIRST
    for _ in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(["ask", "answer", "refuse", "change", "send"])):
            case "ask":
                kind = data.draw(st.sampled_from(ResourceType))
                stream.take(Request(kind, data.draw(st.frozensets(st.sampled_from(["a", "b", "*"])))))
            case "answer":
                stream.take(ack(data.draw(st.sampled_from(sent)), *data.draw(st.sets(st.sampled_from(["a", "b"])))))
            case "refuse":
                stream.take(nack(data.draw(st.sampled_from(sent))))
            case "change":
                world = snapshot(data.draw(st.sampled_from("123")), data.draw(st.sampled_from("123")))
            case "send":
                sent += stream.due(world)
    for kind in ResourceType:
        stream.take(Request(kind, frozenset({"a", "b"})))
    rounds = 0
    while replies := stream.due(world):
        rounds += 1
        assert rounds < 4, "replies without end"
        for reply in replies:
            stream.take(ack(reply, "a", "b"))
    assert stream.settled(world)
    assert all(subscription.rejected is None for subscription in stream.by_kind.values())
