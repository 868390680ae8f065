"""/v1/files: kept, listed, read, deleted, each tenant's own; refused with the words of the API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import httpx
import pytest
from google.api.httpbody_pb2 import HttpBody

from runtime.errors import FailedPrecondition, Unavailable
from tests.gateway.openai.mesh import AUDITOR, STRANGER, Answered, Served, served

LINES = b'{"custom_id":"a"}\n' * 3


def upload(content: bytes = LINES, name: str = "in.jsonl", fields: dict[str, str] | None = None) -> HttpBody:
    files = {"file": (name, content, "application/jsonl")}
    request = httpx.Request("POST", "http://x", data={"purpose": "batch", **(fields or {})}, files=files)
    return HttpBody(content_type=request.headers["content-type"], data=request.read())


def body_of(answered: Answered) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answered.text)
    return found


def refusal(answered: Answered) -> tuple[int, str | None, str]:
    error = body_of(answered)["error"]
    assert error["message"]
    return answered.status, error["param"], error["code"]


@pytest.fixture
async def service() -> AsyncIterator[Served]:
    async with served() as running:
        yield running


async def kept(service: Served, content: bytes = LINES, name: str = "in.jsonl") -> str:
    answered = await service.ask("CreateFile", upload(content, name))
    assert answered.status == 200, answered.text
    return str(body_of(answered)["id"])


async def test_a_file_is_kept_shown_read_and_deleted(service: Served) -> None:
    made = body_of(await service.ask("CreateFile", upload()))
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": len(LINES),
        "created_at": 1_700_000_000,
        "expires_at": 1_700_000_000,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert body_of(await service.ask("GetFile", file_id=made["id"])) == made
    content = await service.read("GetFileContent", file_id=made["id"])
    assert (content.messages[0].content_type, content.text.encode()) == ("application/octet-stream", LINES)
    deleted = body_of(await service.ask("DeleteFile", file_id=made["id"]))
    assert deleted == {"id": made["id"], "object": "file", "deleted": True}
    assert refusal(await service.ask("GetFile", file_id=made["id"])) == (404, "file_id", "file_not_found")
    assert service.mesh.count("CreateFile", "", "OK") == 1


async def test_an_empty_file_is_one(service: Served) -> None:
    content = await service.read("GetFileContent", file_id=await kept(service, b""))
    assert [(message.content_type, message.data) for message in content.messages] == [("application/octet-stream", b"")]


async def test_a_large_file_travels_in_parts_both_ways(service: Served) -> None:
    content = bytes(range(256)) * 12_000
    file_id = await kept(service, content)
    assert service.scheduler.parts > 2
    read = await service.read("GetFileContent", file_id=file_id)
    assert b"".join(message.data for message in read.messages) == content


async def test_a_read_that_breaks_goes_on_where_it_was(service: Served) -> None:
    content = bytes(range(256)) * 30
    file_id = await kept(service, content)
    service.scheduler.read_breaks_after = 3
    read = await service.read("GetFileContent", file_id=file_id)
    assert b"".join(message.data for message in read.messages) == content


async def test_a_file_that_ends_too_soon_is_no_answer(service: Served) -> None:
    file_id = await kept(service)
    file, data = service.scheduler.files[file_id]
    service.scheduler.files[file_id] = file, data[:-1]
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        await service.read("GetFileContent", file_id=file_id)
    assert cut.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_files_are_listed_in_pages(service: Served) -> None:
    ids = [await kept(service, name=f"{number}") for number in range(5)]
    page = body_of(await service.ask("ListFiles", limit=2, order="asc"))
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[0], ids[1])
    rest = body_of(await service.ask("ListFiles", after=ids[1], order="asc"))
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert [file["id"] for file in body_of(await service.ask("ListFiles"))["data"]] == ids[::-1]
    none = body_of(await service.ask("ListFiles", purpose="batch_output"))
    assert (none["data"], none["first_id"]) == ([], None)


async def test_how_long_a_file_is_kept(service: Served) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = body_of(await service.ask("CreateFile", upload(fields=fields)))
    assert made["expires_at"] == made["created_at"] + 3600


async def test_files_are_a_tenants_own(service: Served) -> None:
    file_id = await kept(service)
    for method in ("GetFile", "DeleteFile"):
        assert refusal(await service.ask(method, secret=STRANGER, file_id=file_id))[0] == 404
    assert (await service.read("GetFileContent", secret=STRANGER, file_id=file_id)).status == 404
    assert body_of(await service.ask("ListFiles", secret=STRANGER))["data"] == []
    assert (await service.ask("GetFile", file_id=file_id)).status == 200


async def test_who_may_only_look_keeps_and_deletes_nothing(service: Served) -> None:
    file_id = await kept(service)
    assert (await service.ask("CreateFile", upload(), secret=AUDITOR)).status == 403
    assert (await service.ask("DeleteFile", secret=AUDITOR, file_id=file_id)).status == 403
    assert (await service.ask("GetFile", secret=AUDITOR, file_id=file_id)).status == 200


async def test_nobody_without_a_key(service: Served) -> None:
    assert refusal(await service.ask("CreateFile", HttpBody(data=b"no form"), secret="")) == (401, None, "missing_api_key")
    assert (await service.read("GetFileContent", secret="", file_id="x")).status == 401


@pytest.mark.parametrize(
    ("request_", "param", "code"),
    [
        (HttpBody(content_type="application/json", data=b"{}"), None, "invalid_form"),
        (upload(fields={"purpose": "fine-tune"}), "purpose", "invalid_value"),
        (upload(name="x" * 256), "file", "invalid_value"),
        (upload(fields={"colour": "blue"}), "colour", "unknown_parameter"),
        (upload(fields={"expires_after[anchor]": "created_at"}), "expires_after", "invalid_value"),
        (
            upload(fields={"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}),
            "expires_after[anchor]",
            "invalid_value",
        ),
        *(
            (
                upload(fields={"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}),
                "expires_after[seconds]",
                "out_of_range",
            )
            for seconds in ("3599", "2592001", "-1", "1e4", "²", "9" * 30)
        ),
    ],
)
async def test_uploads_refused(service: Served, request_: HttpBody, param: str | None, code: str) -> None:
    assert refusal(await service.ask("CreateFile", request_)) == (400, param, code)
    assert not service.scheduler.files


@pytest.mark.parametrize("missing", ["file", "purpose"])
async def test_parts_that_are_missing(service: Served, missing: str) -> None:
    request = httpx.Request("POST", "http://x", files={"purpose" if missing == "file" else "file": ("f", b"batch")})
    form = HttpBody(content_type=request.headers["content-type"], data=request.read())
    assert refusal(await service.ask("CreateFile", form)) == (400, missing, "missing_required_parameter")


async def test_lists_refused(service: Served) -> None:
    assert refusal(await service.ask("ListFiles", limit=10_001)) == (400, "limit", "out_of_range")
    assert refusal(await service.ask("ListFiles", order="up")) == (400, "order", "invalid_value")


async def test_a_scheduler_that_cannot_now_is_worth_another_try(service: Served) -> None:
    service.scheduler.failure = Unavailable("the database is away", retry_after_s=2.0)
    answered = await service.ask("GetFile", file_id="x")
    assert refusal(answered) == (503, None, "unavailable")
    assert answered.metadata["retry-after"] == "2"
    assert "database" in answered.text


async def test_a_scheduler_that_keeps_no_files_is_the_operators_to_mend(service: Served) -> None:
    service.scheduler.failure = FailedPrecondition("this scheduler has no --jobs-database")
    assert refusal(await service.ask("GetFile", file_id="x")) == (400, None, "failed_precondition")
