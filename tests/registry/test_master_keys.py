"""The file of master keys: made once, read anew while a registry runs, never made for a database that others sealed."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from registry.files.data_keys import DataKeyAltered, DataKeys
from registry.first_start import open_master_keys
from registry.master_keys import (
    MasterKeyFile,
    MasterKeys,
    add_master_key,
    new_master_keys,
    read_master_keys,
    remove_master_keys,
    write_master_keys,
)
from registry.schema import tenants
from registry.seals import RowAltered, Seals
from runtime.errors import FailedPrecondition
from tests.registry.harness import MASTER_KEYS, Ground

SHA256 = "a" * 64
OBJECT = b"o" * 16


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_written_is_read_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "made" / "master.keys"
    keys = new_master_keys().with_new()
    write_master_keys(file, keys)
    assert read_master_keys(file) == keys
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert keys.current.hex() not in repr(keys)


@pytest.mark.parametrize(
    "content",
    ["", "# none\n", "k1", "k1:zz", f"k1:{'00' * 31}", f":{'00' * 32}", f"{'i' * 17}:{'00' * 32}", f"{'é' * 9}:{'00' * 32}"],
)
def test_a_file_that_holds_no_keys_is_told_of(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(FailedPrecondition, match=r"master keys"):
        read_master_keys(tmp_path / "keys")
    with pytest.raises(FailedPrecondition, match="cannot read"):
        read_master_keys(tmp_path / "nothing")


def test_keys_added_at_once_are_all_there(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_master_keys(file, MASTER_KEYS)
    with ThreadPoolExecutor(8) as threads:
        added = list(threads.map(lambda _: add_master_key(file), range(16)))
    keys = read_master_keys(file)
    assert set(keys.keys) == {"k1", *added}
    assert keys.keys["k1"] == MASTER_KEYS.current
    assert remove_master_keys(file) == 16
    assert read_master_keys(file) == MasterKeys(keys.newest, {keys.newest: keys.current})


def test_a_running_registry_begins_to_use_a_new_key_by_itself(tmp_path: Path) -> None:
    file, time = tmp_path / "keys", Time()
    write_master_keys(file, MASTER_KEYS)
    source = MasterKeyFile(file, now_s=time)
    data_keys = DataKeys(source)
    added = add_master_key(file)
    assert data_keys.newest_key_id == "k1", "it does not look all the time"
    time.now_s = 1.0
    assert data_keys.newest_key_id == added
    assert data_keys.make(OBJECT, SHA256)[1].master_key_id == added


def test_a_key_that_another_registry_uses_already_is_looked_for_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    write_master_keys(file, MASTER_KEYS)
    behind = MasterKeyFile(file, now_s=Time())
    data_key, kept = DataKeys(behind).make(OBJECT, SHA256)
    add_master_key(file)
    ahead = MasterKeyFile(file)
    assert DataKeys(behind).open(OBJECT, SHA256, kept) == data_key
    data_key, kept = DataKeys(ahead).make(OBJECT, SHA256)
    assert DataKeys(behind).open(OBJECT, SHA256, kept) == data_key


def test_a_file_that_was_spoilt_changes_nothing_until_it_is_mended(tmp_path: Path) -> None:
    file, time = tmp_path / "keys", Time()
    write_master_keys(file, MASTER_KEYS)
    source = MasterKeyFile(file, now_s=time)
    for content in ("nonsense", None):
        file.write_text(content) if content else file.unlink()
        time.now_s += 1.0
        assert source.latest() == MASTER_KEYS
        with pytest.raises(DataKeyAltered, match="not among this registry's"):
            DataKeys(source).open(OBJECT, SHA256, DataKeys(new_master_keys()).make(OBJECT, SHA256)[1])
    mended = MASTER_KEYS.with_new()
    write_master_keys(file, mended)
    time.now_s += 1.0
    assert source.latest() == mended


async def test_the_first_start_makes_a_file_and_the_next_uses_it(tmp_path: Path, ground: Ground) -> None:
    await ground.execute("DELETE FROM tenants")
    file = tmp_path / "keys"
    made = await open_master_keys(file, ground.database)
    assert (await open_master_keys(file, ground.database)).latest() == made.latest() == read_master_keys(file)


async def test_no_file_is_made_for_a_database_in_use_and_another_file_is_not_begun_with(tmp_path: Path, ground: Ground) -> None:
    file = tmp_path / "keys"
    with pytest.raises(FailedPrecondition, match=f"are not in {file}; restore"):
        await open_master_keys(file, ground.database)
    assert not file.exists()
    write_master_keys(file, new_master_keys())
    with pytest.raises(FailedPrecondition, match=f"'k1', which is not in {file}"):
        await open_master_keys(file, ground.database)
    write_master_keys(file, MASTER_KEYS.with_new())
    await open_master_keys(file, ground.database)


async def test_a_row_under_a_key_that_nobody_has_says_so(ground: Ground) -> None:
    stranger = Seals(new_master_keys())
    async with ground.database.reading() as connection:
        row = (await connection.execute(tenants.select())).first()
    assert row is not None
    with pytest.raises(RowAltered, match="under master key 'k1', which is not among"):
        stranger.check(tenants, row)


def test_a_key_opens_for_its_own_object_and_file_alone() -> None:
    data_keys = DataKeys(new_master_keys())
    data_key, kept = data_keys.make(OBJECT, SHA256)
    assert data_keys.open(OBJECT, SHA256, kept) == data_key
    for object_id, sha256 in ((b"p" * 16, SHA256), (OBJECT, "b" * 64)):
        with pytest.raises(DataKeyAltered):
            data_keys.open(object_id, sha256, kept)
