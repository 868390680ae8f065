"""A load at the gateway that brings a configuration or files: a version in a real registry, signed by the gateway."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2
from penstock.registry.v1.models_pb2_grpc import ModelServiceStub

from cli.publish import publish_model
from gateway.fleet import Fleet
from gateway.kserve.overrides import Overrides
from gateway.kserve.repository import Repository, RepositorySettings
from gateway.publisher import KnownModel, Publisher, number_after
from gateway.types import FleetNews, PublishedVersion
from placement.copies.assign import Placement
from registry.access.door import NodeDoor
from registry.audit.bounded import BoundedTrail
from registry.models.servicer import ModelServicer
from runtime.clock import SystemClock
from runtime.errors import AlreadyExists, Code, DeadlineExceeded, NotFound, PenstockError, Unimplemented
from runtime.identity import NodeIdentity, Role
from runtime.ids import Digest, ModelName, ModelVersion, TenantId
from runtime.load_overrides import LoadOverride
from runtime.manifests import sign_endorsement, verify_manifest
from runtime.model_folder import read_model_folder
from runtime.notices import ModelNotice, NoticeBoard
from tests.gateway.fakes import DIGEST, LOCAL, FakeLink, FakeRepository, FakeSource, copy_of, published, wish_of, worker_of
from tests.registry.conftest import identities  # noqa: F401  # a fixture
from tests.registry.files.rig import LIMITS, rig_on
from tests.registry.harness import Served, ground_on, served
from tests.worker.life.test_repository import described

M = ModelName("m")
DEFAULT, ACME = TenantId("default"), TenantId("acme")
CONFIG = {
    "backend": "onnxruntime",
    "max_batch_size": 4,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
}


@dataclass
class Scene:
    registry: Served
    models: ModelServiceStub
    publisher: Publisher
    overrides: Overrides
    board: NoticeBoard
    operator: nacl.signing.SigningKey
    gateway: NodeIdentity
    folder: Path

    async def endorse(self, *models: str, tenant: str = "default") -> None:
        endorsement = models_pb2.Endorsement(
            tenant=tenant,
            ed25519_public_key=self.gateway.ed25519_public_key,
            name="gateway",
            models=models,
            endorsed_at_ms=int(time.time() * 1000),
        )
        signed = sign_endorsement(self.operator, endorsement)
        await self.models.EndorseSigner(models_pb2.EndorseSignerRequest(endorsement=signed))

    async def publish(self, tenant: str = "", name: str = "m") -> PublishedVersion:
        folder = described(self.folder / name, name)
        made = await publish_model(await self.registry.channel(), self.operator, read_model_folder(folder), tenant=tenant)
        return PublishedVersion(ModelName(name), ModelVersion(made.version), Digest(made.digest), "tensor", 0)

    async def manifest(self, version: str, name: str = "m") -> models_pb2.Manifest:
        """As a consumer takes it."""
        answer = await self.models.GetVersion(models_pb2.GetVersionRequest(model=name, version=version))
        roots = {bytes(self.operator.verify_key)}
        endorsement = answer.endorsement if answer.HasField("endorsement") else None
        return verify_manifest(answer.manifest, roots, endorsement, now_ms=int(time.time() * 1000)).manifest


@pytest.fixture
async def scene(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> AsyncIterator[Scene]:  # noqa: F811
    operator = identities[Role.OPERATOR].signing_key
    roots = frozenset({bytes(operator.verify_key)})
    async with ground_on(str(tmp_path / "registry.db")) as ground:
        models = ModelServicer(
            door=NodeDoor(),
            database=ground.database,
            seals=ground.seals,
            trail=ground.trail,
            bounded=BoundedTrail(ground.trail, ground.clock),
            roots=lambda: roots,
            clock=ground.clock,
        )
        files = rig_on(ground, tmp_path / "objects", LIMITS).files
        async with served([models.register, files.servicer.register], identities) as registry:
            board = NoticeBoard()
            channel = await registry.channel(Role.GATEWAY)
            publisher = Publisher(channel, identities[Role.GATEWAY], SystemClock(), lambda: roots, board)
            stub = ModelServiceStub(await registry.channel())
            gateway = identities[Role.GATEWAY]
            yield Scene(registry, stub, publisher, Overrides(publisher), board, operator, gateway, tmp_path)


def override(config: dict[str, object] | None = None, **files: bytes) -> LoadOverride:
    """`files` by version and name, such as _1_model_onnx."""
    split = [key.split("_")[1:] for key in files]
    contents = {(int(version), f"{name}.{suffix}"): files[f"_{version}_{name}_{suffix}"] for version, name, suffix in split}
    return LoadOverride(json.dumps(CONFIG if config is None else config), contents)


async def refused(scene: Scene, given: LoadOverride, tenant: TenantId = DEFAULT, model: str = "m") -> PenstockError:
    with pytest.raises(PenstockError) as error:
        await scene.overrides.published(ModelName(model), given, tenant)
    return error.value


async def test_files_become_the_next_version_signed_by_the_gateway(scene: Scene) -> None:
    await scene.publish()
    await scene.endorse("m")
    weights = hashlib.shake_256(b"w").digest(3 * LIMITS.part_bytes + 17)
    made = await scene.overrides.published(M, override(_1_model_onnx=weights, _1_vocabulary_txt=b""), DEFAULT)
    assert (made.model, made.version) == ("m", "2"), "version 1 is taken: the next one"
    manifest = await scene.manifest("2")
    assert {file.path: (file.sha256, file.size_bytes) for file in manifest.files} == {
        "model.onnx": (hashlib.sha256(weights).hexdigest(), len(weights)),
        "vocabulary.txt": (hashlib.sha256(b"").hexdigest(), 0),
    }
    assert (manifest.engine, manifest.max_batch_size, manifest.tenant) == ("onnx", 4, "default")
    higher = await scene.overrides.published(M, override(_7_model_onnx=weights), DEFAULT)
    assert higher.version == "7", "a number that is free and above all others is kept"


async def test_a_configuration_alone_keeps_the_files_and_what_it_has_no_word_for(scene: Scene) -> None:
    await scene.publish()
    await scene.endorse("*")
    before = await scene.manifest("1")
    made = await scene.overrides.published(M, override({"max_batch_size": 2, "dynamic_batching": {}}), DEFAULT)
    after = await scene.manifest(made.version)
    assert (made.version, after.max_batch_size) == ("2", 2)
    assert (list(after.files), list(after.inputs), after.task) == (list(before.files), list(before.inputs), before.task)


async def test_a_gateway_that_is_not_endorsed_is_told_what_to_do(scene: Scene) -> None:
    await scene.publish()
    await scene.endorse("other-*")
    for given in (override(_1_model_onnx=b"x"), override({"max_batch_size": 2})):
        error = await refused(scene, given)
        assert error.code is Code.PERMISSION_DENIED
        key = scene.gateway.ed25519_public_key.hex()
        assert f"penstock signers add gateway --key {key} --tenant default --models 'm'" in error.message
    versions = (await scene.models.ListModels(models_pb2.ListModelsRequest())).models[0].versions
    assert [each.version for each in versions] == ["1"]


async def test_a_model_that_is_not_there_is_made_for_the_caller(scene: Scene) -> None:
    await scene.endorse("*", tenant="acme")
    made = await scene.overrides.published(ModelName("new"), override(_3_model_onnx=b"x"), ACME)
    assert (made.version, (await scene.manifest("3", "new")).tenant) == ("3", "acme")
    error = await refused(scene, override({"max_batch_size": 2}), model="none")
    assert (error.code, "no version of it" in error.message) == (Code.NOT_FOUND, True)


async def test_others_models_are_not_changed(scene: Scene) -> None:
    await scene.publish(tenant="acme")
    await scene.endorse("*", tenant="acme")
    await scene.endorse("*", tenant="globex")
    for given in (override(_1_model_onnx=b"x"), override({"max_batch_size": 2})):
        error = await refused(scene, given, TenantId("globex"))
        assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "OTHERS_MODEL")
    assert (await scene.overrides.published(M, override({"max_batch_size": 2}), ACME)).version == "2"
    everybody = await scene.overrides.published(M, override({"max_batch_size": 3}), TenantId(""))
    assert everybody.version == "3", "where no keys are asked for, everybody may"


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (override({**CONFIG, "name": "other"}, _1_model_onnx=b"x"), Code.INVALID_ARGUMENT, "'other'"),
        (override({"backend": "onnxruntime"}, _1_model_onnx=b"x"), Code.INVALID_ARGUMENT, "inputs and outputs"),
        (override({**CONFIG, "backend": "python"}, _1_model_py=b"x"), Code.PERMISSION_DENIED, "python"),
        (override({**CONFIG, "backend": "upstream"}, _1_upstream_toml=b"x"), Code.PERMISSION_DENIED, "upstream"),
        (override(_1_model_onnx=b"x", _2_model_onnx=b"x"), Code.INVALID_ARGUMENT, "[1, 2]"),
        (override(_1_weights_bin=b"x"), Code.INVALID_ARGUMENT, "weights.bin"),
        (override({"colour": 1}), Code.INVALID_ARGUMENT, "colour"),
        (override({"backend": "tensorrt"}), Code.INVALID_ARGUMENT, "model.plan"),
        (
            override({"output": [{"name": "y", "data_type": 11, "label_filename": "a"}]}),
            Code.INVALID_ARGUMENT,
            "label_filename",
        ),
        (
            override({"model_warmup": [{"inputs": {"x": {"input_data_file": "a"}}}]}),
            Code.INVALID_ARGUMENT,
            "warm-up data 'a'",
        ),
    ],
)
async def test_what_is_refused_before_anything_is_uploaded(scene: Scene, given: LoadOverride, code: Code, words: str) -> None:
    await scene.publish()
    await scene.endorse("*")
    uploads: list[bytes] = []
    scene.publisher.upload = lambda content, tenant: uploads.append(content)  # type: ignore[method-assign, assignment, return-value]
    error = await refused(scene, given)
    assert (error.code, words in error.message) == (code, True), error.message
    assert uploads == []


async def test_a_base_that_nobody_trusted_made_is_not_signed_anew(scene: Scene) -> None:
    """The gateway's signature on what somebody smuggled in would make it trusted."""
    await scene.publish()
    await scene.endorse("*")
    scene.publisher._roots = lambda: frozenset({bytes(nacl.signing.SigningKey.generate().verify_key)})
    error = await refused(scene, override({"max_batch_size": 2}))
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "MANIFEST_REFUSED")
    scene.publisher._roots = None
    error = await refused(scene, override({"max_batch_size": 2}))
    assert (error.code, "--trusted-signers" in error.message) == (Code.FAILED_PRECONDITION, True)


async def test_a_withdrawn_version_or_a_revoked_signer_is_no_base(scene: Scene) -> None:
    base = await scene.publish()
    await scene.endorse("*")
    scene.board.hear_model(ModelNotice(M, DEFAULT, frozenset(), withdrawn=frozenset({base.digest}), generation=10**6))
    assert (await refused(scene, override({"max_batch_size": 2}))).code is Code.NOT_FOUND
    signer = (await scene.models.GetVersion(models_pb2.GetVersionRequest(model="m"))).version.signer_id
    scene.board.hear_model(ModelNotice(M, DEFAULT, frozenset(), revoked_signers=frozenset({signer}), generation=10**7))
    assert (await refused(scene, override({"max_batch_size": 2}))).reason == "MANIFEST_REFUSED"


async def test_many_at_once_get_numbers_of_their_own(scene: Scene) -> None:
    await scene.publish()
    await scene.endorse("*")
    made = await asyncio.gather(
        *(scene.overrides.published(M, override({"max_batch_size": size}), DEFAULT) for size in (2, 3, 5, 6))
    )
    assert sorted(each.version for each in made) == ["2", "3", "4", "5"]


class Crowd:
    """A publisher that others are always quicker than, and that can be made to wait."""

    def __init__(self) -> None:
        self.tries = 0
        self.gate = asyncio.Event()

    async def find(self, model: ModelName) -> KnownModel | None:
        return KnownModel(model, DEFAULT, self.tries)

    async def manifest(self, model: ModelName) -> models_pb2.Manifest:
        raise NotFound("none")

    async def create(self, model: ModelName, tenant: TenantId) -> None:
        raise AssertionError("there is one")

    async def upload(self, content: bytes, tenant: TenantId) -> str:
        await self.gate.wait()
        return "0" * 64

    async def publish(self, manifest: models_pb2.Manifest) -> PublishedVersion:
        self.tries += 1
        raise AlreadyExists(f"version {manifest.version} is there")


async def test_who_always_comes_late_gives_up(scene: Scene) -> None:
    crowd = Crowd()
    crowd.gate.set()
    with pytest.raises(AlreadyExists, match="version 5"):
        await Overrides(crowd).published(M, override(_1_model_onnx=b"x"), DEFAULT)
    assert crowd.tries == 5


async def test_the_bytes_of_all_loads_at_once_are_bounded() -> None:
    crowd = Crowd()
    overrides = Overrides(crowd, max_bytes=10)
    first = asyncio.ensure_future(overrides.published(M, override(_1_model_onnx=bytes(6)), DEFAULT))
    await asyncio.sleep(0)
    with pytest.raises(PenstockError, match="6 bytes are under way") as error:
        await overrides.published(M, override(_1_model_onnx=bytes(6)), DEFAULT)
    assert (error.value.code, error.value.retry_after_s) == (Code.RESOURCE_EXHAUSTED, 1.0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    crowd.gate.set()
    with pytest.raises(AlreadyExists):
        await overrides.published(M, override(_1_model_onnx=bytes(6)), DEFAULT)


def test_numbers() -> None:
    files = {(3, "a"): b"", (3, "b"): b""}
    known = KnownModel(M, DEFAULT, 3)
    assert number_after(None, {}) == 1
    assert number_after(None, files) == 3
    assert number_after(known, files) == 4
    assert number_after(KnownModel(M, DEFAULT, 2), files) == 3


@asynccontextmanager
async def loading(
    overriding: object = None, load_wait_s: float = 5.0
) -> AsyncIterator[tuple[Repository, Fleet, FakeRepository]]:
    fleet, wishes = Fleet(FakeSource(), lambda worker: FakeLink(worker.address), SystemClock()), FakeRepository()
    settings = RepositorySettings(LOCAL, load_copies=2, load_wait_s=load_wait_s)
    yield Repository(fleet, wishes, wishes, settings, overriding), fleet, wishes  # type: ignore[arg-type]


class Made:
    """What a load brought became version 5."""

    async def published(self, model: ModelName, override: LoadOverride, tenant: TenantId) -> PublishedVersion:
        return PublishedVersion(model, ModelVersion("5"), DIGEST, "tensor", 0)


class Slow:
    async def published(self, model: ModelName, override: LoadOverride, tenant: TenantId) -> PublishedVersion:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


async def test_what_was_made_is_placed_and_waited_for() -> None:
    async with loading(Made()) as (repository, fleet, wishes):
        wishes.versions.append(published("m", "9"))

        def done(placement: Placement) -> None:
            fleet.apply(FleetNews(True, (worker_of("a", copy_of("m", "5")),), placements=(wish_of("m", version="5"),)))

        wishes.done = done
        await repository.load("m", None, override({}), DEFAULT)
        assert [(placed.version, placed.copies) for placed in wishes.placed] == [("5", 2)]


async def test_a_gateway_that_publishes_nothing_says_so_and_one_that_is_late_too() -> None:
    async with loading() as (repository, _, wishes):
        with pytest.raises(Unimplemented, match="publishes nothing"):
            await repository.load("m", None, override({}), DEFAULT)
    async with loading(Slow(), load_wait_s=0.05) as (repository, _, wishes):
        with pytest.raises(DeadlineExceeded, match="not published yet"):
            await repository.load("m", None, override({}), DEFAULT)
    assert wishes.placed == []
