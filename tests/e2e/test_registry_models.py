"""Models from the command line to the answer: versions, aliases, withdrawal, sharing, import, overrides."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from inference import grpc_service_pb2 as kserve

from tests.support.adding import adding, adding_graph
from tests.support.commands import done, refused, until_shown
from tests.support.kserve_calls import Answer, Gateway, gateway_of
from tests.support.mesh import RunningMesh

WITHIN_S = 1.0
"""In which every cache follows the registry."""

HIDDEN = (grpc.StatusCode.NOT_FOUND,)
CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [1]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [1]}],
}
CONFIG_PBTXT = """
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""


@pytest.fixture
async def gateway(mesh: RunningMesh) -> AsyncIterator[Gateway]:
    async with gateway_of(mesh) as gateway:
        yield gateway


async def push(mesh: RunningMesh, folder: Path, name: str, amount: int, *words: str) -> str:
    return await done(mesh, "models", "push", str(adding(folder / f"{name}-{amount}", name, amount)), *words)


async def answers(gateway: Gateway, model: str, count: int) -> Counter[Answer]:
    return Counter([await gateway.ask(model) for _ in range(count)])


async def test_a_canary_gets_its_share_is_promoted_and_rolled_back(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    assert "canaried: stable is version 1" in await push(mesh, tmp_path, "canaried", 1, "--alias", "stable")
    pushed = await push(mesh, tmp_path, "canaried", 2, "--alias", "canary=10")
    assert "canary is version 2, 10 %" in pushed
    first, second = Answer(1.0, "1"), Answer(2.0, "2")

    split = await answers(gateway, "canaried", 400)
    assert set(split) == {first, second}
    assert 1 <= split[second] <= 120, "of 400 about 40: beyond these bounds once in 10^15 times"
    assert {await gateway.ask("canaried", "canary") for _ in range(20)} == {second}
    assert {await gateway.ask("canaried", "stable") for _ in range(20)} == {first}
    assert await gateway.ask("canaried", "2") == second

    assert "canaried: stable is version 2" in await done(mesh, "models", "promote", "canaried")
    assert await gateway.until_only("canaried", second) < WITHIN_S
    assert (await gateway.refusal("canaried", "canary"))[0] is grpc.StatusCode.NOT_FOUND
    assert "canaried: stable is version 1" in await done(mesh, "models", "rollback", "canaried")
    assert await gateway.until_only("canaried", first) < WITHIN_S

    history = await done(mesh, "models", "history", "canaried")
    kinds = re.findall(r"UTC +(\w+) +(\S+) +(\S+) .*?(moved|promoted|removed|rolled back)", history)
    assert kinds == [
        ("stable", "2", "1", "rolled back"),
        ("canary", "2", "-", "removed"),
        ("stable", "1", "2", "promoted"),
        ("canary", "-", "2", "moved"),
        ("stable", "-", "1", "moved"),
    ]


async def test_an_alias_moves_only_from_where_it_is_believed_to_be(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "compared", 1, "--alias", "stable")
    await push(mesh, tmp_path, "compared", 2)
    said = await refused(mesh, "models", "alias", "compared", "stable", "--version", "2", "--expect", "2")
    assert "ABORTED" in said
    assert await gateway.until_only("compared", Answer(1.0, "1")) < WITHIN_S
    await done(mesh, "models", "alias", "compared", "stable", "--version", "2", "--expect", "1")
    assert await gateway.until_only("compared", Answer(2.0, "2")) < WITHIN_S


async def test_an_alias_waits_until_its_new_target_is_warm(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "warmed", 1, "--alias", "stable")
    pushed = await push(mesh, tmp_path, "warmed", 2, "--copies", "0", "--alias", "stable")
    assert "warmed: stable is version 2" in pushed
    assert await gateway.until_only("warmed", Answer(2.0, "2")) < WITHIN_S
    shown = await done(mesh, "models", "show", "warmed", "2")
    assert shown.count("READY") == 2, "as many as the old target had"


async def test_show_is_a_tree_of_what_a_version_is(mesh: RunningMesh, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "shown", 1, "--alias", "stable")
    shown = await done(mesh, "models", "show", "shown")
    signer = re.search(r"signed by ([0-9a-f]{20})", shown)
    assert signer
    assert signer[1] in await done(mesh, "models", "list")
    for line in ("tenant default, not shared", "stable → version 1", "x  FP32  [1]", "y  FP32  [1]", "up to 8 rows"):
        assert line in shown
    assert re.search(r"digest sha256:[0-9a-f]{64}", shown)
    assert re.search(r"model\.onnx  \d+ bytes  sha256:[0-9a-f]{64}", shown)
    assert shown.count("READY") == 2
    assert "no version '7'" in await refused(mesh, "models", "show", "shown", "7")


async def test_a_withdrawn_version_is_refused_at_once_and_unloaded(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "recalled", 1, "--alias", "stable")
    await push(mesh, tmp_path, "recalled", 2, "--alias", "canary=50")
    withdrawn = await done(mesh, "models", "withdraw", "recalled", "2", "--reason", "adds wrongly")
    assert "withdrew recalled version 2: adds wrongly" in withdrawn
    assert await gateway.until_refused("recalled", "2") < WITHIN_S
    code, said = await gateway.refusal("recalled", "2")
    assert code is grpc.StatusCode.NOT_FOUND
    assert "withdrawn" in said
    assert await gateway.until_only("recalled", Answer(1.0, "1")) < WITHIN_S, "the canary's share goes back to stable"
    await until_shown(mesh, "fleet", says="recalled 1: READY", not_="recalled 2")
    assert "was withdrawn" in await refused(mesh, "models", "load", "recalled", "--version", "2")
    assert "WITHDRAWN" in await done(mesh, "models", "show", "recalled", "2")

    await done(mesh, "models", "withdraw", "recalled", "1", "--reason", "all of it")
    assert await gateway.until_refused("recalled") < WITHIN_S
    await until_shown(mesh, "fleet", not_="recalled")


async def test_a_model_is_its_tenants_alone_until_it_is_shared(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "guarded", 1)
    secret = (await done(mesh, "keys", "create", "of others", "--tenant", "neighbours")).strip()
    others = gateway.with_key(secret)
    assert (await others.refusal("guarded"))[0] in HIDDEN
    index = await others.stub.RepositoryIndex(kserve.RepositoryIndexRequest(), metadata=others.metadata)
    assert "guarded" not in [model.name for model in index.models]

    assert "shared with neighbours" in await done(mesh, "models", "share", "guarded", "--with", "neighbours")
    assert await others.until_answered("guarded") < WITHIN_S
    assert "shared with nobody" in await done(mesh, "models", "share", "guarded", "--private")
    assert await others.until_refused("guarded") < WITHIN_S
    assert await gateway.ask("guarded") == Answer(1.0, "1")


async def test_a_triton_repository_moves_in_with_one_command(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    repository = tmp_path / "triton-repo"
    for version, amount in ((1, 100), (3, 300)):
        adding_graph(repository / "configured" / str(version), amount)
    (repository / "configured" / "config.pbtxt").write_text(CONFIG_PBTXT)
    adding_graph(repository / "bare" / "1", 7)
    told = await done(mesh, "models", "import", str(repository))
    for line in ("published configured version 1", "published configured version 3", "published bare version 1"):
        assert line in told
    await until_shown(mesh, "models", "list", says="bare")
    await until_ready(mesh, "configured 3", "bare 1")
    assert await gateway.ask("configured") == Answer(300.0, "3")
    assert await gateway.ask("bare") == Answer(7.0, "1")
    metadata = await gateway.stub.ModelMetadata(kserve.ModelMetadataRequest(name="bare"), metadata=gateway.metadata)
    assert [(tensor.name, tensor.datatype) for tensor in metadata.inputs] == [("x", "FP32")], "read from the file"
    again = await done(mesh, "models", "import", str(repository))
    assert again.count("already published") == 3


async def test_a_plain_onnx_file_moves_in(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    file = adding_graph(tmp_path / "lone", 9) / "model.onnx"
    await done(mesh, "models", "import", str(file), "--model", "lone")
    await until_ready(mesh, "lone 1")
    assert await gateway.ask("lone") == Answer(9.0, "1")


async def test_a_load_with_files_of_its_own_over_the_gateway(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    await push(mesh, tmp_path, "overridden", 1)
    request = kserve.RepositoryModelLoadRequest(model_name="overridden")
    request.parameters["config"].string_param = json.dumps(CONFIG)
    request.parameters["file:2/model.onnx"].bytes_param = (adding_graph(tmp_path / "own", 50) / "model.onnx").read_bytes()
    await gateway.stub.RepositoryModelLoad(request, metadata=gateway.metadata, timeout=60)
    assert await gateway.ask("overridden") == Answer(50.0, "2")
    config = await gateway.stub.ModelConfig(kserve.ModelConfigRequest(name="overridden"), metadata=gateway.metadata)
    assert config.config.max_batch_size == 4
    shown = await done(mesh, "models", "show", "overridden", "2")
    assert "gateway" in shown, "the gateway signed it, by the operator's word"


async def test_a_load_with_files_needs_the_right_to_publish(mesh: RunningMesh, gateway: Gateway, tmp_path: Path) -> None:
    caller = gateway.with_key((await done(mesh, "keys", "create", "only calls")).strip())
    request = kserve.RepositoryModelLoadRequest(model_name="smuggled")
    request.parameters["config"].string_param = json.dumps(CONFIG)
    request.parameters["file:1/model.onnx"].bytes_param = (adding_graph(tmp_path / "own", 1) / "model.onnx").read_bytes()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await caller.stub.RepositoryModelLoad(request, metadata=caller.metadata, timeout=60)
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "smuggled" not in await done(mesh, "models", "list")


async def until_ready(mesh: RunningMesh, *copies: str) -> None:
    for copy in copies:
        await until_shown(mesh, "fleet", says=f"{copy}: READY")
