"""Files and batches of a whole mesh, through the official client: what goes in as lines comes out as answers, in order."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.support.mesh import RunningMesh

ENDED = ("completed", "failed", "cancelled", "expired")
PATIENCE_S = 60.0


@pytest.fixture
def client(mesh: RunningMesh) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=mesh.api_key, base_url=f"{mesh.http_url}/v1", max_retries=0, timeout=30) as made:
        yield made


def line(number: int, model: str = "sums") -> dict[str, Any]:
    question = {"role": "user", "content": f"What is {number} plus 30?"}
    body = {"model": model, "messages": [question], "temperature": 0}
    return {"custom_id": f"sum-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def uploaded(client: openai.OpenAI, content: bytes) -> str:
    return client.files.create(file=("sums.jsonl", content), purpose="batch").id


def begun(client: openai.OpenAI, *lines: dict[str, Any]) -> Batch:
    file_id = uploaded(client, "\n".join(json.dumps(each) for each in lines).encode())
    return client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")


def ended(client: openai.OpenAI, batch: Batch) -> Batch:
    until_s = time.monotonic() + PATIENCE_S
    while batch.status not in ENDED:
        assert time.monotonic() < until_s, batch
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(each) for each in client.files.content(file_id).text.splitlines()]


def test_a_file_from_upload_to_deletion(client: openai.OpenAI) -> None:
    content = json.dumps(line(1)).encode() * 20_000
    made = client.files.create(
        file=("many.jsonl", content), purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.bytes, made.filename, made.purpose, made.object) == (len(content), "many.jsonl", "batch", "file")
    assert made.expires_at == made.created_at + 7200
    assert made.id in {file.id for file in client.files.list(limit=2, purpose="batch")}
    assert client.files.retrieve(made.id) == made
    assert client.files.content(made.id).content == content
    assert client.files.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made.id)


def test_a_batch_answers_every_line_in_order(client: openai.OpenAI) -> None:
    batch = ended(client, begun(client, *(line(number) for number in range(12, 24))))
    assert (batch.status, batch.error_file_id) == ("completed", None)
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed) == (12, 12)
    answers = results(client, batch.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"sum-{number}" for number in range(12, 24)]
    for number, answer in zip(range(12, 24), answers, strict=True):
        assert answer["response"]["status_code"] == 200
        assert str(number + 30) in answer["response"]["body"]["choices"][0]["message"]["content"]


def test_lines_that_cannot_be_answered_cost_the_others_nothing(client: openai.OpenAI) -> None:
    batch = ended(client, begun(client, line(1), line(2, "nothing"), line(3, "digits")))
    assert batch.status == "completed"
    assert [answer["custom_id"] for answer in results(client, batch.output_file_id)] == ["sum-1"]
    errors = {error["custom_id"]: error for error in results(client, batch.error_file_id)}
    assert errors.keys() == {"sum-2", "sum-3"}
    assert errors["sum-2"]["response"]["status_code"] == 404
    assert errors["sum-3"]["response"]["body"]["error"]["code"] == "unsupported_model"


def test_a_file_that_is_no_batch_says_which_lines(client: openai.OpenAI) -> None:
    stream = line(2)
    stream["body"]["stream"] = True
    lines = [json.dumps(line(1)), "{", json.dumps(line(1)), json.dumps(stream)]
    file_id = uploaded(client, "\n".join(lines).encode())
    made = client.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = ended(client, made)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert {error.line for error in batch.errors.data or ()} == {2, 3, 4}


def test_batches_are_listed_and_cancelled(client: openai.OpenAI) -> None:
    batch = begun(client, *(line(number) for number in range(400)))
    assert client.batches.list(limit=1).data[0].id == batch.id
    client.batches.cancel(batch.id)
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    assert batch.request_counts is not None
    assert batch.request_counts.completed < 400
    if batch.output_file_id is not None:
        assert len(results(client, batch.output_file_id)) == batch.request_counts.completed


def test_what_is_refused_says_why(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as purpose:
        client.files.create(file=b"{}", purpose="fine-tune")
    assert purpose.value.param == "purpose"
    with pytest.raises(openai.NotFoundError) as missing:
        client.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    assert missing.value.code == "file_not_found"
    with pytest.raises(openai.BadRequestError) as endpoint:
        client.batches.create(input_file_id="file-none", endpoint="/v1/responses", completion_window="24h")
    assert endpoint.value.param == "endpoint"
