"""/v1/batches: OpenAI's object to the letter, each tenant's own, with the rights of the key that asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from penstock.scheduler.v1 import jobs_pb2

from tests.gateway.openai.mesh import AUDITOR, NARROW, STRANGER, Served, served
from tests.gateway.openai.test_files import body_of, kept, refusal

CHAT = "/v1/chat/completions"


def wish(file_id: str = "file-1", **fields: Any) -> HttpBody:
    body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}
    return HttpBody(content_type="application/json", data=json.dumps(body).encode())


@pytest.fixture
async def service() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


async def test_a_batch_is_made_shown_and_cancelled(service: Served) -> None:
    file_id = await kept(service)
    made = body_of(await service.ask("CreateBatch", wish(file_id, metadata={"night": "1"})))
    assert made == {
        "id": made["id"],
        "object": "batch",
        "endpoint": CHAT,
        "errors": None,
        "input_file_id": file_id,
        "completion_window": "24h",
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": 1_700_000_000,
        "in_progress_at": None,
        "expires_at": None,
        "finalizing_at": None,
        "completed_at": None,
        "failed_at": None,
        "expired_at": None,
        "cancelling_at": None,
        "cancelled_at": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": {"night": "1"},
    }
    assert body_of(await service.ask("GetBatch", batch_id=made["id"])) == made
    assert body_of(await service.ask("CancelBatch", batch_id=made["id"]))["status"] == "cancelling"


async def test_all_that_a_batch_can_tell(service: Served) -> None:
    made = body_of(await service.ask("CreateBatch", wish(await kept(service))))
    batch = service.scheduler.batches[made["id"]]
    batch.MergeFrom(
        jobs_pb2.Batch(
            status="completed",
            total=3,
            completed=2,
            failed=1,
            output_file_id="file-o",
            error_file_id="file-e",
            completed_at_ms=5000,
        )
    )
    batch.errors.add(line=2, code="invalid_json_line", message="no JSON")
    batch.errors.add(code="empty_file", message="nothing in it")
    shown = body_of(await service.ask("GetBatch", batch_id=made["id"]))
    assert (shown["status"], shown["completed_at"]) == ("completed", 5)
    assert shown["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert (shown["output_file_id"], shown["error_file_id"]) == ("file-o", "file-e")
    assert shown["errors"] == {
        "object": "list",
        "data": [
            {"code": "invalid_json_line", "line": 2, "message": "no JSON", "param": None},
            {"code": "empty_file", "line": None, "message": "nothing in it", "param": None},
        ],
    }


async def test_a_batch_is_done_with_the_rights_of_its_key(service: Served) -> None:
    made = body_of(await service.ask("CreateBatch", wish(await kept(service)), secret=NARROW))
    owner = service.scheduler.batches[made["id"]].owner
    assert (owner.tenant, owner.key_id, list(owner.allowed_models)) == ("acme", "k3", ["words"])


async def test_batches_are_listed_in_pages(service: Served) -> None:
    file_id = await kept(service)
    ids = [body_of(await service.ask("CreateBatch", wish(file_id)))["id"] for _ in range(25)]
    page = body_of(await service.ask("ListBatches"))
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == (ids[:4:-1], True)
    rest = body_of(await service.ask("ListBatches", after=page["last_id"], limit=100))
    assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == (ids[4::-1], False)
    assert refusal(await service.ask("ListBatches", limit=101)) == (400, "limit", "out_of_range")


async def test_batches_are_a_tenants_own(service: Served) -> None:
    file_id = await kept(service)
    batch_id = body_of(await service.ask("CreateBatch", wish(file_id)))["id"]
    for method in ("GetBatch", "CancelBatch"):
        answered = await service.ask(method, secret=STRANGER, batch_id=batch_id)
        assert refusal(answered) == (404, "batch_id", "batch_not_found")
    assert refusal(await service.ask("CreateBatch", wish(file_id), secret=STRANGER)) == (404, "file_id", "file_not_found")
    assert body_of(await service.ask("ListBatches", secret=STRANGER))["data"] == []


async def test_who_may_only_look_makes_and_ends_none(service: Served) -> None:
    batch_id = body_of(await service.ask("CreateBatch", wish(await kept(service))))["id"]
    assert (await service.ask("CreateBatch", wish(), secret=AUDITOR)).status == 403
    assert (await service.ask("CancelBatch", secret=AUDITOR, batch_id=batch_id)).status == 403
    assert (await service.ask("GetBatch", secret=AUDITOR, batch_id=batch_id)).status == 200


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input_file_id": None}, "input_file_id", "missing_required_parameter"),
        ({"input_file_id": 3}, "input_file_id", "invalid_type"),
        ({"input_file_id": ""}, "input_file_id", "invalid_value"),
        ({"endpoint": "/v1/images"}, "endpoint", "invalid_value"),
        ({"completion_window": None}, "completion_window", "missing_required_parameter"),
        ({"completion_window": "x" * 200}, "completion_window", "invalid_value"),
        ({"completion_window": "soon"}, None, "invalid_value"),
        ({"metadata": []}, "metadata", "invalid_type"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "invalid_value"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "invalid_value"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "invalid_value"),
        ({"output_expires_after": {"anchor": "created_at"}}, "output_expires_after", "unsupported_parameter"),
        ({"colour": "blue"}, "colour", "unknown_parameter"),
    ],
)
async def test_batches_refused(service: Served, fields: dict[str, Any], param: str | None, code: str) -> None:
    file_id = await kept(service)
    assert refusal(await service.ask("CreateBatch", wish(**{"file_id": file_id, **fields}))) == (400, param, code)
    assert not service.scheduler.batches


async def test_what_is_no_json_is_told(service: Served) -> None:
    assert refusal(await service.ask("CreateBatch", HttpBody(data=b"{"))) == (400, None, "invalid_json")
