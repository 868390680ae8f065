"""What a batch and its lines may be, and the lines of its result files."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.ids import TenantId
from scheduler.jobs.batches.lines import LineCutter, LineTooLong
from scheduler.jobs.batches.policy import check_metadata, read_line, result_line, window_ms
from scheduler.jobs.batches.types import MAX_LINE_BYTES, Batch, BatchStatus, Fault, Line, Outcome, Progress, Times
from scheduler.jobs.errors import BatchRefused
from scheduler.jobs.files.types import FileId
from scheduler.jobs.types import Answer, BatchId, JobState, Owner

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "sums", "messages": []}}


def test_a_good_line() -> None:
    line = read_line(3, json.dumps(GOOD).encode(), CHAT)
    assert line == Line(3, "a", "sums", b'{"model":"sums","messages":[]}')


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"custom_id": None}, "missing_required_parameter"),
        ({"custom_id": 7}, "missing_required_parameter"),
        ({"custom_id": "a\x00"}, "invalid_custom_id"),
        ({"custom_id": "\ud800"}, "invalid_custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id"),
        ({"method": "GET"}, "invalid_method"),
        ({"url": "/v1/embeddings"}, "invalid_url"),
        ({"body": []}, "missing_required_parameter"),
        ({"body": {}}, "missing_required_parameter"),
        ({"body": {"model": "a\nb"}}, "invalid_model"),
        ({"body": {"model": "sums", "stream": True}}, "invalid_stream"),
    ],
)
def test_a_bad_line_is_named(change: dict[str, Any], code: str) -> None:
    fault = read_line(9, json.dumps(GOOD | change).encode(), CHAT)
    assert isinstance(fault, Fault)
    assert (fault.line, fault.code) == (9, code)


@pytest.mark.parametrize("raw", [b"{", b"\xff", b"[]", b"null", b"NaN", b'{"a": NaN}', b"[" * 100_000])
def test_a_line_that_is_no_json(raw: bytes) -> None:
    fault = read_line(1, raw, CHAT)
    assert isinstance(fault, Fault)
    assert fault.code == "invalid_json_line"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_a_fault(raw: bytes) -> None:
    assert isinstance(read_line(1, raw, CHAT), Line | Fault)


@given(st.lists(st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"\r", b"{}"]), max_size=6).map(b"".join)), st.data())
def test_lines_are_the_same_however_the_bytes_come_and_from_wherever_one_goes_on(
    pieces: list[bytes], data: st.DataObject
) -> None:
    """Those without a byte are counted, and not told of."""
    whole = b"".join(pieces)
    cutter = LineCutter()
    found = [line for piece in pieces for line in cutter.cut(piece)] + list(cutter.end())
    expected = [(number, raw) for number, raw in enumerate(whole.split(b"\n"), 1) if raw]
    assert [(line.number, line.raw) for line in found] == expected
    if found:
        last = data.draw(st.sampled_from(found))
        again = LineCutter(last.number, last.ends_at)
        rest = list(again.cut(whole[last.ends_at :])) + list(again.end())
        assert rest == [line for line in found if line.number > last.number]


def test_a_file_of_nothing_but_line_ends_has_no_lines() -> None:
    cutter = LineCutter()
    assert list(cutter.cut(b"\n" * 1_000_000)) == []
    (line,) = cutter.cut(b"{}\n")
    assert (line.number, line.ends_at) == (1_000_001, 1_000_003)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert [line.raw for line in LineCutter().cut(b"\xef\xbb\xbf{}\n{}\n")] == [b"{}", b"{}"]


def test_a_line_is_bounded() -> None:
    cutter = LineCutter()
    assert list(cutter.cut(b"{}\n")) != []
    for _ in range(16):
        assert list(cutter.cut(bytes(1 << 20))) == []
    with pytest.raises(LineTooLong) as caught:
        list(cutter.cut(bytes(1 << 20)))
    assert caught.value.number == 2
    assert len(cutter._held) <= MAX_LINE_BYTES + (1 << 20)


@pytest.mark.parametrize(("window", "hours"), [("24h", 24), ("1h", 1), ("7d", 168), ("168h", 168)])
def test_windows(window: str, hours: int) -> None:
    assert window_ms(window) == hours * 3_600_000


@pytest.mark.parametrize("window", ["", "24", "h", "0h", "8d", "169h", "-1d", "1.5h", "24H", "99999h", "२h"])
def test_windows_that_are_none(window: str) -> None:
    with pytest.raises(BatchRefused, match="24h"):
        window_ms(window)


@pytest.mark.parametrize("metadata", [{str(n): "" for n in range(17)}, {"k" * 65: ""}, {"k": "v" * 513}])
def test_metadata_is_bounded(metadata: dict[str, str]) -> None:
    with pytest.raises(BatchRefused):
        check_metadata(metadata)


def batch(expired_ms: int = 0) -> Batch:
    owner, at = Owner(TenantId("acme")), Times(expired_ms=expired_ms)
    return Batch(
        BatchId("b"), owner, CHAT, "24h", FileId("f"), None, None, BatchStatus.FINALIZING, 1, 0, 0, at, Progress(), {}, ()
    )


@pytest.mark.parametrize(
    ("outcome", "answer", "expired_ms", "response", "error"),
    [
        (
            Outcome("b-1", 1, "a", JobState.SUCCEEDED, 2, "", ""),
            Answer(200, b'{"x":\n1}'),
            0,
            {"status_code": 200, "request_id": "b-1", "body": {"x": 1}},
            None,
        ),
        (
            Outcome("b-1", 1, "a", JobState.DEAD, 2, "", "OK"),
            Answer(400, b"\xffno json"),
            0,
            {"status_code": 400, "request_id": "b-1", "body": "�no json"},
            None,
        ),
        (
            Outcome("b-1", 1, "a", JobState.DEAD, 0, "5 of 5", "UNAVAILABLE"),
            None,
            0,
            None,
            {"code": "unavailable", "message": "5 of 5"},
        ),
        (
            Outcome("b-1", 1, "a", JobState.CANCELLED, 0, "", ""),
            None,
            5,
            None,
            {"code": "batch_expired", "message": "this request could not be done before the completion window ended"},
        ),
        (
            Outcome("b-1", 1, "a", JobState.CANCELLED, 0, "", ""),
            None,
            0,
            None,
            {"code": "batch_cancelled", "message": "this request was cancelled before it was done"},
        ),
    ],
)
def test_result_lines(outcome: Outcome, answer: Answer | None, expired_ms: int, response: Any, error: Any) -> None:
    line = result_line(batch(expired_ms), outcome, answer)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"id": "b-1", "custom_id": "a", "response": response, "error": error}
