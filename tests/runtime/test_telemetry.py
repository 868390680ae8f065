"""Logs carry ids and never a secret; the metrics endpoint answers."""

import asyncio
import time
import urllib.request

from prometheus_client import CollectorRegistry, ProcessCollector

from runtime.loop_lag import measure_loop_lag
from runtime.telemetry import add_ids, redact, request_id_var, start_metrics_endpoint


def test_secret_fields_are_blanked() -> None:
    event = redact(None, "", {"api_key": "sk-1", "Authorization": "Bearer x", "prompt": "12+34", "tokens": 3, "model": "sums"})
    assert event == {
        "api_key": "[redacted]",
        "Authorization": "[redacted]",
        "prompt": "[redacted]",
        "tokens": 3,
        "model": "sums",
    }


def test_lines_carry_the_requests_id() -> None:
    token = request_id_var.set("r-1")
    try:
        assert add_ids(None, "", {"event": "x"})["request_id"] == "r-1"
    finally:
        request_id_var.reset(token)


def test_the_metrics_endpoint_answers() -> None:
    port = start_metrics_endpoint("127.0.0.1", 0)
    assert b"python_info" in _page(port)


async def test_every_service_exports_its_memory_and_how_late_its_loop_is() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    port = start_metrics_endpoint("127.0.0.1", 0, registry)
    samples = "penstock_event_loop_lag_seconds_count"
    async with asyncio.timeout(20):
        while not registry.get_sample_value(samples):
            await asyncio.sleep(0.02)
    page = await asyncio.to_thread(_page, port)
    assert samples.encode() in page
    assert b"process_resident_memory_bytes" in page


async def test_a_blocked_loop_is_seen() -> None:
    registry = CollectorRegistry()
    lag = measure_loop_lag(registry)
    try:
        time.sleep(0.4)  # noqa: ASYNC251 (the loop is to be late)
        async with asyncio.timeout(20):
            while not registry.get_sample_value("penstock_event_loop_lag_seconds_count"):
                await asyncio.sleep(0.01)
        assert (registry.get_sample_value("penstock_event_loop_lag_seconds_sum") or 0.0) >= 0.25
        assert not registry.get_sample_value("penstock_event_loop_lag_seconds_bucket", {"le": "0.25"})
    finally:
        lag.stop()


async def test_two_services_of_one_registry_share_the_histogram() -> None:
    registry = CollectorRegistry()
    for lag in (measure_loop_lag(registry), measure_loop_lag(registry)):
        lag.stop()


def _page(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return bytes(answer.read())
