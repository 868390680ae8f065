"""Models behind somebody's API, served by a whole mesh: pushed like any other, asked with the official client through Envoy.

The upstream is a real server of this test, and once the mesh's own gateway: Penstock behind Penstock.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.support.mesh import RunningMesh, running_mesh
from tests.support.upstream_server import RETRY_AFTER_S, UpstreamServer, openai_answer, upstream_thread, vector_of

KEY = "sk-of-the-operator"
_PATIENCE_S = 15.0

CHAT = """
name = "{name}"
engine = "upstream"
task = "chat"
[[inputs]]
name = "text_input"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "text_output"
datatype = "BYTES"
shape = [1]
"""
VECTORS = """
name = "{name}"
engine = "upstream"
task = "embedding"
max_batch_size = 8
[[inputs]]
name = "text"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "vector"
datatype = "FP32"
shape = [3]
"""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """A mesh whose workers may call the server with a key of the operator's."""

    mesh: RunningMesh
    server: UpstreamServer
    folder: Path

    def push(self, name: str, description: str, **fields: str) -> subprocess.CompletedProcess[str]:
        folder = self.folder / name
        folder.mkdir()
        (folder / "model.toml").write_text(description.format(name=name))
        config = {"api": "openai", "base_url": f"{self.server.url}/v1", "model": "echo", **fields}
        (folder / "upstream.toml").write_text("".join(f'{field} = "{value}"\n' for field, value in config.items()))
        return self.mesh.penstock("models", "push", str(folder))

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(api_key=self.mesh.api_key, base_url=f"{self.mesh.http_url}/v1", max_retries=0, timeout=30)


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    folder = tmp_path_factory.mktemp("upstreams")
    keys = folder / "keys.toml"
    keys.write_text('[operator]\nkey_env = "KEY_OF_THE_TEST"\nhosts = ["127.0.0.1"]\n')
    keys.chmod(0o600)
    settings = {"PENSTOCK_UPSTREAM_KEYS": str(keys), "KEY_OF_THE_TEST": KEY}
    with upstream_thread(openai_answer) as server, mock.patch.dict(os.environ, settings):
        with running_mesh(folder / "data") as mesh:
            made = Upstreams(mesh, server, folder)
            for pushed in (made.push("echo", CHAT, key="operator"), made.push("lengths", VECTORS, key="operator")):
                assert pushed.returncode == 0, pushed.stderr
            yield made


def talk(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_a_chat_and_its_stream(upstreams: Upstreams) -> None:
    with upstreams.client() as client:
        whole = client.chat.completions.create(model="echo", messages=talk("hällo big world"), temperature=0)
        assert whole.choices[0].message.content == "hällo big world"
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 3)
        chunks = list(
            client.chat.completions.create(
                model="echo", messages=talk("one two three"), stream=True, stream_options={"include_usage": True}
            )
        )
    said = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(said) == "one two three", "what came together goes on together"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 6
    asked = [each for each in upstreams.server.asked if each.path == "/v1/chat/completions"]
    assert {each.headers["authorization"] for each in asked} == {f"Bearer {KEY}"}
    assert asked[0].body["temperature"] == 0


def test_tools_reach_the_upstream_and_its_calls_come_back(upstreams: Upstreams) -> None:
    tools: list[ChatCompletionFunctionToolParam] = [{"type": "function", "function": {"name": "echo", "parameters": {}}}]
    with upstreams.client() as client:
        whole = client.chat.completions.create(model="echo", messages=talk("two words"), tools=tools, tool_choice="required")
        with client.chat.completions.stream(model="echo", messages=talk("two words"), tools=tools) as stream:
            streamed = stream.get_final_completion()
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="sums", messages=talk("a"), tools=tools)
    for answer in (whole, streamed):
        calls = [call for call in answer.choices[0].message.tool_calls or () if call.type == "function"]
        assert [(call.id, call.function.name) for call in calls] == [("call-1", "echo")]
        assert json.loads(calls[0].function.arguments) == {"words": "two words "}
        assert answer.choices[0].finish_reason == "tool_calls"
    asked = next(each.body for each in upstreams.server.asked if "tools" in each.body)
    assert (asked["tools"], asked["tool_choice"]) == (tools, "required")
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


def test_several_answers_are_several_calls_upstream(upstreams: Upstreams) -> None:
    with upstreams.client() as client:
        answer = client.chat.completions.create(model="echo", messages=talk("one by one"), n=3, seed=7, logit_bias={"5": -1})
    assert [choice.message.content for choice in answer.choices] == ["one by one"] * 3
    asked = [each.body for each in upstreams.server.asked if each.body.get("logit_bias")]
    assert sorted(each["seed"] for each in asked) == [7, 8, 9]
    assert not any("n" in each for each in asked)


def test_embeddings(upstreams: Upstreams) -> None:
    texts = [f"text {number}" for number in range(20)]  # more than max_batch_size
    with upstreams.client() as client:
        answer = client.embeddings.create(model="lengths", input=texts)
    found = np.array([each.embedding for each in answer.data], np.float32)
    np.testing.assert_array_equal(found, np.array([vector_of(text) for text in texts], np.float32))


def test_the_upstreams_refusal_says_when_to_come_back(upstreams: Upstreams) -> None:
    with upstreams.client() as client, pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model="echo", messages=talk("refuse"))
    assert refused.value.response.headers["retry-after"] == str(RETRY_AFTER_S)
    assert refused.value.status_code == 429
    assert KEY not in refused.value.response.text


def test_an_upstream_that_breaks_off(upstreams: Upstreams) -> None:
    with upstreams.client() as client:
        stream = client.chat.completions.create(model="echo", messages=talk("break"), stream=True)
        with pytest.raises(openai.APIError, match="broke off"):
            list(stream)


def test_a_client_that_leaves_ends_the_call_upstream(upstreams: Upstreams) -> None:
    upstreams.server.gone.clear()
    with upstreams.client() as client:
        stream = client.chat.completions.create(model="echo", messages=talk("hang"), stream=True)
        assert any(chunk.choices and chunk.choices[0].delta.content == "hang" for chunk in stream)
        assert not upstreams.server.gone.is_set()
        stream.close()
        assert upstreams.server.gone.wait(_PATIENCE_S), "the upstream still answers a client that left"


def test_a_model_that_points_at_the_machines_metadata_is_not_loaded(upstreams: Upstreams) -> None:
    pushed = upstreams.push("thief", CHAT, base_url="http://169.254.169.254/latest")
    assert pushed.returncode == 1
    assert "calls '169.254.169.254', an address of the local link" in pushed.stderr
    assert upstreams.mesh.penstock("models", "unload", "thief").returncode == 0


def test_no_log_tells_the_key(upstreams: Upstreams) -> None:
    logs = [log.read_text(errors="replace") for log in (upstreams.mesh.data / "logs").glob("*.log")]
    assert any("model_ready" in log and '"echo"' in log for log in logs)
    assert not any(KEY in log for log in logs)


def test_penstock_behind_penstock(upstreams: Upstreams) -> None:
    keys = Path(os.environ["PENSTOCK_UPSTREAM_KEYS"])
    keys.write_text(keys.read_text() + f'[mesh]\nkey = "{upstreams.mesh.api_key}"\nhosts = ["127.0.0.1"]\n')
    pushed = upstreams.push("again", CHAT, base_url=f"{upstreams.mesh.http_url}/v1", model="sums", key="mesh")
    assert pushed.returncode == 0, pushed.stderr
    question = talk("What is 12 plus 30?")
    with upstreams.client() as client:
        behind = client.chat.completions.create(model="again", messages=question, temperature=0)
        itself = client.chat.completions.create(model="sums", messages=question, temperature=0)
    assert behind.choices[0].message.content == itself.choices[0].message.content
    assert behind.usage == itself.usage
