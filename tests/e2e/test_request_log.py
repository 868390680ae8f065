"""The request log of `penstock up`: what the command line and HTTP say of what was asked a moment ago."""

from __future__ import annotations

import json
import sqlite3
import time
import urllib.error
import urllib.request
from typing import Any

from tests.support.mesh import RunningMesh

_PATIENCE_S = 30.0


def http(mesh: RunningMesh, path: str, body: object = None, key: str | None = None) -> tuple[int, dict[str, str], Any]:
    headers = {"authorization": f"Bearer {key or mesh.api_key}", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(mesh.http_url + path, data, headers), timeout=30) as answer:
            return answer.status, dict(answer.headers), json.loads(answer.read())
    except urllib.error.HTTPError as refused:
        return refused.code, dict(refused.headers), json.loads(refused.read())


def logged(mesh: RunningMesh, request_id: str) -> dict[str, Any]:
    """Once it is written."""
    end_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end_s:
        status, _, answer = http(mesh, f"/v1/usage/requests?request_id={request_id}")
        assert status == 200, answer
        if found := answer.get("requests"):
            (entry,) = found
            return dict(entry)
        time.sleep(0.1)
    raise AssertionError(f"{request_id} is not in the log")


def test_what_was_asked_is_told(mesh: RunningMesh) -> None:
    chat = {"model": "sums", "messages": [{"role": "user", "content": "2 + 3 ="}], "max_tokens": 8}
    status, headers, answer = http(mesh, "/v1/chat/completions", chat)
    assert status == 200, answer
    entry = logged(mesh, headers["x-request-id"])
    assert (entry["method"], entry["asked_model"], entry["code"]) == ("CreateChatCompletion", "sums", "OK")
    assert int(entry["completion_tokens"]) == answer["usage"]["completion_tokens"]
    assert int(entry["answer_bytes"]) > 0
    assert entry["worker_id"]
    assert not entry.get("request_body"), "nobody asked for words to be kept"

    status, headers, _ = http(mesh, "/v1/chat/completions", chat | {"model": "no-such-model"})
    assert status == 404
    assert logged(mesh, headers["x-request-id"])["code"] == "NOT_FOUND"

    shown = mesh.penstock("requests", "list", "--failed", "--model", "no-such-model", "--since", "1h")
    assert shown.returncode == 0, shown.stderr
    assert headers["x-request-id"] in shown.stdout
    assert "NOT_FOUND" in shown.stdout
    shown = mesh.penstock("requests", "show", entry["request_id"])
    assert "CreateChatCompletion" in shown.stdout, shown.stderr
    shown = mesh.penstock("requests", "usage", "--days", "1", "--model", "sums")
    assert "sums" in shown.stdout, shown.stderr

    status, _, refused = http(mesh, "/v1/usage/requests", key="sk-pn-nobody")
    assert status == 401, refused
    with sqlite3.connect(f"file:{mesh.data / 'gateway' / 'requests.db'}?mode=ro", uri=True) as database:
        stored = " ".join(map(str, database.execute("SELECT * FROM request_log").fetchall()))
    assert mesh.api_key not in stored
    assert "2 + 3" not in stored
