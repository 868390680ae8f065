"""Logs carry ids and never a secret; the metrics endpoint answers."""

import urllib.request

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
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        assert b"python_info" in answer.read()
