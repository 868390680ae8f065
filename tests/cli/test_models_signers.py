"""Who may sign: endorsed by the operator's key, listed, revoked; and the words of the commands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2
from typer.testing import CliRunner

from cli import models_commands, signers_commands
from cli.profile import Profile
from cli.publish import Published, publish_folder
from cli.signers import NewSigner, add_signer, read_public_key, revoke_signer, show_signers, state_of
from runtime.errors import PenstockError
from runtime.identity import Authority, Role, node_id_of
from tests.cli.models_mesh import Mesh, opened_mesh
from tests.cli.test_models import write_folder

CI = nacl.signing.SigningKey(b"c" * 32)
CI_ID = node_id_of(bytes(CI.verify_key))


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path / "mesh") as made:
        yield made


async def publish(mesh: Mesh, key: nacl.signing.SigningKey, folder: Path) -> Published:
    async with mesh.profile.registry_channel() as registry:
        return await publish_folder(registry, key, folder, tenant="acme")


async def test_a_signers_life(mesh: Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "digits", name="acme-digits")
    with pytest.raises(grpc.aio.AioRpcError, match="not trusted"):
        await publish(mesh, CI, folder)
    wanted = NewSigner("CI of acme", bytes(CI.verify_key), "acme", ("acme-*",), 30)
    await add_signer(mesh.profile, wanted)
    assert f"CI of acme ({CI_ID}) may sign acme-* of tenant acme until" in capsys.readouterr().out
    assert (await publish(mesh, CI, folder)).version == "1"
    other = write_folder(tmp_path / "other", name="globex-digits")
    with pytest.raises(grpc.aio.AioRpcError, match="may not sign model"):
        await publish(mesh, CI, other)

    await show_signers(mesh.profile, "acme")
    assert CI_ID in capsys.readouterr().out
    operator = mesh.identities[Role.OPERATOR].signing_key
    assert (await publish(mesh, operator, folder)).new is False, "whoever signed it, it is there"
    await revoke_signer(mesh.profile, CI_ID, "acme")
    assert f"revoked {CI_ID}" in capsys.readouterr().out
    with pytest.raises(grpc.aio.AioRpcError, match="revoked"):
        await publish(mesh, CI, write_folder(folder, "better", "acme-digits"))
    again = await publish(mesh, operator, write_folder(folder, name="acme-digits"))
    assert (again.version, again.new) == ("2", True), "what a revoked key signed does not count as published"


def test_a_public_key_in_its_forms(tmp_path: Path) -> None:
    key = bytes(CI.verify_key)
    file = tmp_path / "key"
    file.write_text(f"{key.hex()}  # CI\n")
    identity = Authority.open(tmp_path / "ca").enrol(tmp_path / "gateway", Role.GATEWAY)
    assert read_public_key(key.hex()) == read_public_key(str(file)) == key
    assert read_public_key(str(tmp_path / "gateway")) == identity.ed25519_public_key
    file.write_text("")
    for wrong in ("abc", str(file), str(tmp_path / "ca")):
        with pytest.raises(PenstockError):
            read_public_key(wrong)


@pytest.mark.parametrize(
    ("signer", "state"),
    [
        (models_pb2.Signer(), "live"),
        (models_pb2.Signer(expires_at_ms=86_400_000), "until 1970-01-02 00:00 UTC"),
        (models_pb2.Signer(expires_at_ms=1), "expired 1970-01-01 00:00 UTC"),
        (models_pb2.Signer(expires_at_ms=1, revoked_at_ms=86_400_000), "revoked 1970-01-02 00:00 UTC"),
    ],
)
def test_how_a_signer_is(signer: models_pb2.Signer, state: str) -> None:
    assert state_of(signer, 1_000) == state


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["alias", "digits", "Bad", "--version", "1"], "penstock: 'Bad' is no alias"),
        (["alias", "digits", "stable", "--version", "one"], "penstock: version 'one': versions are positive whole numbers"),
        (["push", "nowhere"], "holds no model.toml"),
        (["push", "nowhere", "--alias", "canary=1000"], "the weight is a percentage"),
        (["share", "digits"], "penstock: say who may use it"),
        (["rollback", "digits"], "nothing answers there"),
        (["show", "digits"], "nothing answers there"),
    ],
)
def test_every_failure_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    _write_profile(tmp_path)
    result = CliRunner().invoke(models_commands.app, [*words, "--data", str(tmp_path)])
    assert result.exit_code == 1
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_signers_are_endorsed_for_models_that_are_named(tmp_path: Path) -> None:
    _write_profile(tmp_path)
    runner = CliRunner()
    missing = runner.invoke(signers_commands.app, ["add", "CI", "--key", "ab" * 32, "--data", str(tmp_path)])
    assert (missing.exit_code, "--models" in missing.stderr) == (2, True)
    wrong = runner.invoke(signers_commands.app, ["add", "CI", "--key", "abc", "--models", "*", "--data", str(tmp_path)])
    assert (wrong.exit_code, "neither 64 hex digits nor a file" in wrong.stderr) == (1, True)


def _write_profile(data: Path) -> None:
    """A mesh where nobody answers."""
    Authority.open(data / "ca").enrol(data / "operator", Role.OPERATOR)
    nobody = "127.0.0.1:1"
    Profile(nobody, "", "", nobody, nobody, str(data / "operator"), "here").write(data)
