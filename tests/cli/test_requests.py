"""`penstock requests …` against a real log: as functions, and as processes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from penstock.gateway.v1 import usage_pb2

from cli.profile import Profile
from cli.requests import RequestsQuestion, remarks, seconds, show_request, show_requests, show_usage, size, took
from runtime.errors import InvalidArgument, NotFound
from tests.cli.commands import command
from tests.gateway.request_log.ground import entry
from tests.gateway.request_log.service import ACME, Service, usage_service


async def filled(service: Service) -> Profile:
    now_ms = int(time.time() * 1000)
    async with asyncio.timeout(30):
        while service.room.store is None:
            await asyncio.sleep(0.01)
    failed = {"code": "RESOURCE_EXHAUSTED", "reason": "RATE_LIMITED", "worker_id": "", "request_id": "refused-1"}
    hours_ms = 3_600_000
    await service.room.store.write(
        [
            entry(1, at_ms=now_ms, request_id="fine-1", asked="alias", cache="hit", attempts=2, hedged=True),
            entry(2, at_ms=now_ms - 2 * hours_ms, **failed),
            entry(3, at_ms=now_ms - 3 * hours_ms, request_id="other-1", model="n", request_body='{"prompt":"[red]hi[/]"}'),
        ]
    )
    return Profile(f"127.0.0.1:{service.port}", "", ACME, "", "", "", "local")


async def test_each_command_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> str:
        return capsys.readouterr().out

    async with usage_service(str(tmp_path / "requests.db")) as service:
        profile = await filled(service)
        await show_requests(profile, RequestsQuestion())
        shown = said()
        for text in (
            "fine-1",
            "alias → m/1",
            "RESOURCE_EXHAUSTED (RATE_LIMITED)",
            "1.5 ms",
            "3 + 4",
            "cache hit, 2 workers, hedged",
        ):
            assert text in shown
        assert shown.index("fine-1") < shown.index("refused-1") < shown.index("other-1")
        await show_requests(profile, RequestsQuestion(failed=True))
        shown = said()
        assert "refused-1" in shown
        assert "fine-1" not in shown
        await show_requests(profile, RequestsQuestion(since_s=3600, model="m", limit=1))
        shown = said()
        assert "fine-1" in shown
        assert "refused-1" not in shown
        await show_requests(profile, RequestsQuestion(model="none"))
        assert said() == "there are no such requests\n"

        await show_request(profile, "other-1")
        shown = said()
        for text in ("request other-1", '{"prompt":"[red]hi[/]"}', "10 B in, 20 B out", "by gateway g, process 0"):
            assert text in shown
        with pytest.raises(NotFound, match="no request 'nothing'"):
            await show_request(profile, "nothing")

        await show_usage(profile, 2, "", "")
        shown = said()
        for text in ("(none)", "in all", "from cache"):
            assert text in shown
        await show_usage(profile, 2, "none", "")
        assert said() == "nothing was asked in this time\n"


async def test_as_commands(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        await filled(service)
        mesh = ("--address", f"127.0.0.1:{service.port}", "--key", ACME, "--data", str(tmp_path))
        outcomes = await asyncio.gather(
            command("requests_commands", "app", "list", "--failed", "--since", "3h", *mesh),
            command("requests_commands", "app", "usage", "--days", "2", *mesh),
            command("requests_commands", "app", "show", "nothing", *mesh),
            command("requests_commands", "app", "list", "--since", "soon", *mesh),
        )
        assert [status for status, _, _ in outcomes] == [0, 0, 1, 1], outcomes
        assert "refused-1" in outcomes[0][1]
        assert "fine-1" not in outcomes[0][1]
        assert "in all" in outcomes[1][1]
        for (_, _, err), says in zip(outcomes[2:], ("no request 'nothing'", "--since is 'soon'"), strict=True):
            assert says in err
            assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "found"), [("", 0), ("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), (" 7d ", 604800)]
)
def test_times(words: str, found: float) -> None:
    assert seconds(words) == found


@pytest.mark.parametrize("words", ["1", "h", "-1h", "1 hour", "9999999d", "1e3s"])
def test_times_that_mean_nothing(words: str) -> None:
    with pytest.raises(InvalidArgument, match="90s, 15m, 1h or 7d"):
        seconds(words)


def test_numbers_in_words() -> None:
    assert [took(each) for each in (0.42, 12.3, 2500.0, 12_345.0)] == ["0.4 ms", "12 ms", "2500 ms", "12.3 s"]
    assert [size(each) for each in (0, 1023, 1024, 5 << 20, 3 << 40)] == ["0 B", "1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB"]
    moved = usage_pb2.LoggedRequest(migrations=2, fell_back_from="first", attempts=1)
    assert remarks(moved) == "instead of first, moved 2×"
    assert remarks(usage_pb2.LoggedRequest(attempts=1)) == ""
