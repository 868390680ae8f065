"""`penstock storage …` against a real registry of files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.profile import Profile
from cli.storage import collect_garbage, rotate_master_key, set_quota, show_storage, size_of, size_text
from cli.storage_commands import app
from registry.master_keys import new_master_keys, read_master_keys, write_master_keys
from runtime.errors import InvalidArgument
from runtime.identity import Role
from tests.registry.files.rig import content_of, rig_on, served_rig
from tests.registry.harness import enrol_all, ground_on


async def test_each_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identities = enrol_all(tmp_path / "identities")
    async with ground_on(str(tmp_path / "registry.db")) as ground:
        rig = rig_on(ground, tmp_path / "objects")
        await rig.upload(content_of(3 * 2**20))
        async with served_rig(rig, identities) as server:
            operator = str(identities[Role.OPERATOR].folder)
            profile = Profile("", "", "", server.address, "", operator, "r")
            await set_quota(profile, "acme", size_of("20GiB"))
            assert capsys.readouterr().out == "acme has 3.0 MiB of 20.0 GiB\n"
            await show_storage(profile, "")
            lines = [line.split() for line in capsys.readouterr().out.splitlines()]
            assert ["acme", "3.0", "MiB", "20.0", "GiB", "1", "0"] in lines
            assert ["globex", "0", "B", "no", "limit", "0", "0"] in lines
            rig.later(days=2)
            await collect_garbage(profile, dry_run=True)
            assert capsys.readouterr().out == "3.0 MiB would be freed (files: 1, uploads: 0, stray objects: 0)\n"
            await collect_garbage(profile, dry_run=False)
            assert capsys.readouterr().out == "3.0 MiB were freed (files: 1, uploads: 0, stray objects: 0)\n"
            await rotate_master_key(profile)
            assert capsys.readouterr().out.startswith("everything is under master key k1;")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("17", 17), ("500MB", 500_000_000), ("20GiB", 20 * 2**30), ("1.5 kib", 1536), ("2tb", 2 * 10**12)],
)
def test_sizes_as_people_write_them(text: str, size_bytes: int) -> None:
    assert size_of(text) == size_bytes


@given(st.text(max_size=12))
def test_what_is_no_size_is_refused_as_that(text: str) -> None:
    try:
        assert size_of(text) >= 0
    except InvalidArgument as error:
        assert "20GiB" in error.message


@given(st.integers(0, 2**60))
def test_sizes_as_people_read_them_are_about_right(size_bytes: int) -> None:
    shown = size_text(size_bytes)
    assert abs(size_of(shown) - size_bytes) <= max(1, size_bytes * 0.06)


def test_master_keys_are_added_and_pruned_where_their_file_lies(tmp_path: Path) -> None:
    file = tmp_path / "master.keys"
    write_master_keys(file, new_master_keys())
    added = CliRunner().invoke(app, ["add-key", str(file)])
    assert added.exit_code == 0
    assert read_master_keys(file).newest in added.output
    pruned = CliRunner().invoke(app, ["prune-keys", str(file)])
    assert pruned.output == "removed: 1\n"
    assert len(read_master_keys(file).keys) == 1
    missing = CliRunner().invoke(app, ["add-key", str(tmp_path / "none")])
    assert missing.exit_code == 1
    assert "cannot read the master keys" in missing.output
