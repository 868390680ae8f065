"""`penstock jobs …` against a real scheduler's jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from inference import grpc_service_pb2
from penstock.scheduler.v1 import jobs_pb2
from typer.testing import CliRunner

from cli.jobs import (
    NewJob,
    cancel_job,
    read_call,
    replay_jobs,
    show_dead_letters,
    show_job,
    show_jobs,
    submit_job,
    watch_job,
)
from cli.jobs_commands import app
from cli.profile import Profile
from runtime.errors import InvalidArgument
from runtime.identity import Role
from tests.scheduler.jobs.service import CHAT, answered, claim_one, service_on


async def test_each_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said() -> str:
        return capsys.readouterr().out

    body = tmp_path / "chat.json"
    body.write_text('{"model": "sums", "messages": []}')
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service:
        operator = str(service.mesh.node("the operator", Role.OPERATOR).folder)
        profile = Profile("", "", "", "", f"127.0.0.1:{service.port}", operator, "here")
        gateway = await service.jobs()

        await show_jobs(profile, tenant="", state="", batch_id="", limit=10)
        assert said() == "there are no such jobs\n"
        wanted = NewJob(str(body), CHAT, "acme", idempotency_key="k", timeout_s=600)
        await submit_job(profile, wanted, watch=False)
        job_id, _, state = said().strip().partition(": ")
        assert state == "queued"
        await submit_job(profile, wanted, watch=False)
        assert said() == f"{job_id}: queued (its idempotency key was known)\n"

        claimed = await claim_one(gateway)
        assert claimed.timeout_ms > 0
        failure = jobs_pb2.JobFailure(code=3, message="[red]no such thing[/]")
        await gateway.SettleJob(jobs_pb2.SettleJobRequest(claim=claimed.claim, failure=failure))
        await show_dead_letters(profile, tenant="acme", model="", limit=10)
        assert job_id in said()
        await show_dead_letters(profile, tenant="acme", model="digits", limit=10)
        assert said() == "there are no dead letters\n"
        await show_job(profile, job_id, None)
        shown = said()
        assert "dead: it failed for good: INVALID_ARGUMENT: [red]no such thing[/]" in shown
        assert claimed.job_id in shown
        await replay_jobs(profile, [job_id, "job_none"], tenant="", model="")
        assert said() == "1 of 2 replayed\n"

        again = await claim_one(gateway)
        await gateway.SettleJob(answered(again.claim, '{"text": "é"}'.encode()))
        await watch_job(profile, job_id)
        assert said().split(maxsplit=1)[1] == 'succeeded  it was answered\n{\n "text": "é"\n}\n'
        output = tmp_path / "answer.json"
        await show_job(profile, job_id, output)
        assert json.loads(output.read_bytes()) == {"text": "é"}
        assert "bytes of answer written to" in said()

        await submit_job(profile, NewJob(str(body), CHAT, "acme", delay_s=60), watch=False)
        later = said().partition(":")[0]
        await cancel_job(profile, later)
        assert said() == f"{later}: cancelled, it was cancelled\n"
        await show_jobs(profile, tenant="acme", state="cancelled", batch_id="", limit=10)
        listed = said()
        assert later in listed
        assert job_id not in listed


def test_a_call_is_a_body_for_a_path_or_a_kserve_request(tmp_path: Path) -> None:
    file = tmp_path / "call.json"
    file.write_text('{"modelName": "digits", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}]}')
    assert read_call(str(file), CHAT).http.body == file.read_bytes()
    request = grpc_service_pb2.ModelInferRequest.FromString(read_call(str(file), "").infer)
    assert (request.model_name, request.inputs[0].name) == ("digits", "x")
    file.write_text("{")
    with pytest.raises(InvalidArgument, match="--path"):
        read_call(str(file), "")
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_call(str(tmp_path / "none"), "")


@pytest.mark.parametrize("words", [["dead", "replay"], ["dead", "replay", "job_1", "--all"], ["list", "--state", "lost"]])
def test_words_that_mean_nothing(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2
