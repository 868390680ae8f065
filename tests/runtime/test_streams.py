from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from runtime.streams import Outbox, PayloadTooLarge, Reassembly, parts_of

SIZE = 8  # bytes of a frame below: call, number


def frame(call_id: int, number: int) -> bytes:
    return call_id.to_bytes(4, "big") + number.to_bytes(4, "big")


def frames_in(message: bytes) -> list[tuple[int, int]]:
    cut = [message[start : start + SIZE] for start in range(0, len(message), SIZE)]
    return [(int.from_bytes(one[:4], "big"), int.from_bytes(one[4:], "big")) for one in cut]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 5), st.just(1)),
        st.tuples(st.just("parts"), st.integers(1, 5), st.integers(1, 6)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def drained(outbox: Outbox) -> Iterator[bytes]:
    while outbox:
        yield outbox.take()


@given(steps, st.integers(1, 6 * SIZE))
def test_every_frame_leaves_exactly_once_and_each_calls_frames_in_order(
    plan: list[tuple[str, int, int]], message_bytes: int
) -> None:
    outbox, pushed, messages = Outbox(message_bytes), dict.fromkeys(range(1, 6), 0), list[bytes]()
    for kind, call_id, count in plan:
        if kind == "take":
            messages.append(outbox.take())
            continue
        numbers = range(pushed[call_id], pushed[call_id] + count)
        pushed[call_id] += count
        if kind == "push":
            outbox.push(call_id, frame(call_id, numbers[0]))
        else:
            outbox.push_parts(call_id, iter([frame(call_id, number) for number in numbers]))
    messages.extend(drained(outbox))
    left = [one for message in messages for one in frames_in(message)]
    for call_id, count in pushed.items():
        assert [number for call, number in left if call == call_id] == list(range(count))
    assert all(len(message) < message_bytes + 2 * SIZE for message in messages)  # and a frame and a part, at most


@given(steps, st.sets(st.integers(1, 5)))
def test_a_dropped_call_sends_no_further_part_and_disturbs_no_other(
    plan: list[tuple[str, int, int]], dropped: set[int]
) -> None:
    outbox, pushed = Outbox(2 * SIZE), dict.fromkeys(range(1, 6), 0)
    for kind, call_id, count in plan:
        if kind != "take":
            parts = [frame(call_id, pushed[call_id] + n) for n in range(count)]
            pushed[call_id] += count
            outbox.push_parts(call_id, iter(parts))
    for call_id in dropped:
        outbox.drop(call_id)
    left = [one for message in drained(outbox) for one in frames_in(message)]
    for call_id, count in pushed.items():
        assert [n for call, n in left if call == call_id] == ([] if call_id in dropped else list(range(count)))


def test_large_calls_take_turns_and_small_frames_pass_them() -> None:
    outbox = Outbox(message_bytes=SIZE)
    outbox.push_parts(1, iter([frame(1, n) for n in range(3)]))
    outbox.push_parts(2, iter([frame(2, n) for n in range(3)]))
    first = frames_in(outbox.take())
    outbox.push(3, frame(3, 0))
    rest = [frames_in(message) for message in drained(outbox)]
    assert first == [(1, 0)]
    assert rest[0] == [(3, 0), (2, 0)]  # the small frame first, and still one part, so that neither starves
    assert [one for message in rest[1:] for one in message] == [(1, 1), (2, 1), (1, 2), (2, 2)]


def test_a_frame_pushed_after_parts_of_its_call_waits_for_them() -> None:
    outbox = Outbox(message_bytes=SIZE)
    outbox.push_parts(1, iter([frame(1, 0), frame(1, 1)]))
    outbox.push(1, frame(1, 2))
    assert [n for message in drained(outbox) for _, n in frames_in(message)] == [0, 1, 2]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_payload_cut_in_parts_is_put_together_again(payload: bytes, part_bytes: int) -> None:
    reassembly = Reassembly(len(payload), "a payload")
    parts = list(parts_of(payload, part_bytes))
    for part, _ in parts:
        reassembly.add(bytes(part))
    assert reassembly.whole() == payload
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(0, 60))
def test_a_reassembly_never_holds_more_than_its_limit(parts: list[bytes], limit_bytes: int) -> None:
    reassembly = Reassembly(limit_bytes, "a payload")
    try:
        for part in parts:
            reassembly.add(part)
    except PayloadTooLarge as error:
        assert str(limit_bytes) in error.message
        assert sum(map(len, parts)) > limit_bytes
    assert len(reassembly.whole()) == reassembly.size_bytes <= limit_bytes
