"""`penstock join` and `penstock nodes …` against a real registry: a machine with nothing but a line becomes a node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from penstock.registry.v1 import nodes_pb2
from typer.testing import CliRunner

from cli import nodes, nodes_commands
from cli.join import join, read_fingerprint
from cli.profile import Profile
from registry.nodes.types import JoinTokenRefused
from runtime.errors import FailedPrecondition, InvalidArgument, Unavailable
from runtime.identity import Authority, Role, load_identity
from runtime.join_line import JoinLine, read_join_line
from runtime.serving import Listen, serving
from tests.registry.harness import enrol_all, ground_on
from tests.registry.nodes.world import Newcomer, NodeWorld, node_world

HOSTS = ("gpu1",)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[NodeWorld]:
    async with ground_on(str(tmp_path / "registry.db")) as ground, node_world(ground, enrol_all(tmp_path)) as opened:
        yield opened


@pytest.fixture
def profile(world: NodeWorld) -> Profile:
    operator = world.identities[Role.OPERATOR].folder
    return Profile("", "", "", world.address, "", str(operator), "local")


async def line_to(world: NodeWorld, *addresses: str) -> JoinLine:
    return replace(await world.invite(), addresses=addresses or (world.stranger_address,))


async def test_a_machine_with_nothing_but_the_line_becomes_a_node(world: NodeWorld, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "identity"
    identity = await join(str(await line_to(world)), folder, HOSTS)
    assert identity.role is Role.WORKER
    assert load_identity(folder) == identity
    assert {file.name: file.stat().st_mode & 0o077 for file in folder.iterdir()} == {
        "ca.pem": 0o044,
        "ed25519.key": 0,
        "tls.key": 0,
        "tls.pem": 0o044,
    }
    (node,) = await world.sql.nodes()
    assert (node.node_id, node.hosts) == (identity.node_id, HOSTS)


async def test_joining_again_with_the_same_line_is_no_harm(world: NodeWorld, tmp_path: Path) -> None:
    line = str(await line_to(world))
    first = await join(line, tmp_path / "node", HOSTS)
    again = await join(line, tmp_path / "node", HOSTS)
    assert again.node_id == first.node_id
    assert again.tls_key_pem == first.tls_key_pem
    with pytest.raises(JoinTokenRefused, match=first.node_id):
        await join(line, tmp_path / "another", HOSTS)


async def test_a_join_that_broke_off_after_the_registry_had_answered_is_made_good(world: NodeWorld, tmp_path: Path) -> None:
    line, lost = await line_to(world), Newcomer(world)
    await world.enrol(line, lost)  # and the machine died with the answer on its way
    identity = await join(str(line), lost.folder, HOSTS)
    assert identity.node_id == lost.node_id


async def test_a_registry_that_is_away_is_passed_over(world: NodeWorld, tmp_path: Path) -> None:
    line = await line_to(world, "127.0.0.1:1", world.stranger_address)
    assert (await join(str(line), tmp_path / "node", HOSTS)).role is Role.WORKER


async def test_somebody_else_at_the_address_is_told_nothing(world: NodeWorld, tmp_path: Path) -> None:
    stranger = Authority.open(tmp_path / "their-ca").enrol(tmp_path / "theirs", Role.REGISTRY)
    worker = world.authority.enrol(tmp_path / "worker", Role.WORKER)
    for impostor in (stranger, worker):
        listen = Listen("127.0.0.1", 0, impostor, asks_certificate=False)
        async with serving([listen], [], [], drain_grace_s=0.1) as running:
            line = await line_to(world, f"127.0.0.1:{running.ports[0]}")
            with pytest.raises(Unavailable, match="no registry of this mesh answers"):
                await join(str(line), tmp_path / "node", HOSTS)
    assert sorted(file.name for file in (tmp_path / "node").iterdir()) == ["ed25519.key", "tls.key"]


async def test_a_folder_belongs_to_one_mesh(world: NodeWorld, tmp_path: Path) -> None:
    theirs = Authority.open(tmp_path / "their-ca").enrol(tmp_path / "theirs", Role.WORKER)
    with pytest.raises(FailedPrecondition, match="another mesh"):
        await join(str(await line_to(world)), theirs.folder, HOSTS)
    assert load_identity(theirs.folder) == theirs


async def test_a_line_that_is_none_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="penstock nodes invite"):
        await join("hello", tmp_path / "node", HOSTS)
    assert not (tmp_path / "node").exists()


def test_the_fingerprint_is_of_the_first_file_that_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "id").write_text("ABC\n")
    missing = [tmp_path / "none", tmp_path / "empty", tmp_path / "binary"]
    assert read_fingerprint(missing) == ""
    found = read_fingerprint([*missing, tmp_path / "id"])
    assert len(found) == 64
    (tmp_path / "id").write_text("abc")
    assert read_fingerprint([tmp_path / "id"]) == found


async def test_invite_list_and_revoke_as_an_operator_sees_them(
    world: NodeWorld, profile: Profile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await nodes.invite(profile, nodes.Invited("worker", ("acme",), 7200))
    shown = capsys.readouterr()
    line = read_join_line(shown.out)
    assert line.token_id in shown.err
    assert "penstock join" in shown.err
    identity = await join(str(replace(line, addresses=(world.stranger_address,))), tmp_path / "node", HOSTS)
    assert identity.certificate.peer.tenants == {"acme"}
    await nodes.show_nodes(profile, tokens=False)
    assert {identity.node_id, "acme", "gpu1"} <= set(capsys.readouterr().out.split())
    await nodes.show_nodes(profile, tokens=True)
    assert f"by {identity.node_id}" in capsys.readouterr().out
    await nodes.revoke(profile, identity.node_id, "sold")
    assert identity.node_id in capsys.readouterr().out
    await nodes.show_nodes(profile, tokens=False)
    assert "sold" in capsys.readouterr().out
    await nodes.uninvite(profile, line.token_id)
    assert "lets nobody in" in capsys.readouterr().out


async def test_an_operators_own_certificate_is_renewed_by_hand(world: NodeWorld) -> None:
    folder = world.identities[Role.OPERATOR].folder
    before = load_identity(folder)
    renewed = await nodes.renew(folder, world.address)
    assert renewed.certificate != before.certificate
    assert load_identity(folder) == renewed
    with pytest.raises(FailedPrecondition, match="--registry"):
        await nodes.renew(folder, "")


def test_states_in_words() -> None:
    day_ms = 86_400_000
    assert nodes.node_state(nodes_pb2.Node(), 5) == "live"
    assert nodes.node_state(nodes_pb2.Node(certificate_expires_at_ms=day_ms), 5) == "until 1970-01-02 00:00"
    assert nodes.node_state(nodes_pb2.Node(certificate_expires_at_ms=day_ms), day_ms) == "expired 1970-01-02 00:00"
    gone = nodes_pb2.Node(certificate_expires_at_ms=1, revoked_at_ms=day_ms, revoked_because="sold")
    assert nodes.node_state(gone, 5) == "revoked 1970-01-02 00:00: sold"
    assert nodes.token_state(nodes_pb2.JoinToken(expires_at_ms=day_ms), 5).startswith("until")
    assert nodes.token_state(nodes_pb2.JoinToken(expires_at_ms=4), 5).startswith("expired")
    assert nodes.token_state(nodes_pb2.JoinToken(used_at_ms=4, node_id="n"), 5).endswith("by n")
    assert nodes.token_state(nodes_pb2.JoinToken(used_at_ms=4, revoked_at_ms=5), 5).startswith("revoked")


def test_what_to_do_with_a_line_depends_on_the_role() -> None:
    worker = nodes.how_to_join(nodes_pb2.JoinToken(role="worker", tenants=["acme"]))
    operator = nodes.how_to_join(nodes_pb2.JoinToken(role="operator"))
    assert "for acme" in worker[0]
    assert any("penstock worker --identity-dir" in sentence for sentence in worker)
    assert not any("penstock operator" in sentence for sentence in operator)


def test_the_commands_say_what_they_want(tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(nodes_commands.app, name="nodes")
    app.command()(nodes_commands.join)
    runner = CliRunner()
    for words in (["nodes", "--help"], ["nodes", "invite", "--help"], ["join", "--help"]):
        assert runner.invoke(app, words).exit_code == 0
    failed = runner.invoke(app, ["join", "hello", "--identity-dir", str(tmp_path / "node")])
    assert failed.exit_code == 1
    assert "penstock nodes invite" in failed.output
    assert runner.invoke(app, ["join", "-", "--identity-dir", str(tmp_path)], input="hello\n").exit_code == 1
    nowhere = runner.invoke(app, ["nodes", "list", "--data", str(tmp_path / "nothing")])
    assert nowhere.exit_code == 1
    assert "penstock up" in nowhere.output
