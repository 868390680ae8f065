"""Work in a thread that nobody waits for any more."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from tests.worker.manifests import sha256_of
from worker.files.cache import open_cache
from worker.files.manifest import ManifestFile
from worker.life.served_folders import read_served
from worker.threads import WorkGivenUp, check_wanted, in_thread


async def test_what_it_returns_and_raises_comes_back() -> None:
    assert await in_thread(lambda left, right: left + right, 1, right=2) == 3
    with pytest.raises(ValueError, match="no number"):
        await in_thread(_refuse)


def _refuse() -> None:
    raise ValueError("no number")


async def test_a_cancelled_caller_waits_until_the_work_has_noticed_and_no_longer() -> None:
    begun, blocks = threading.Event(), 0

    def work() -> None:
        nonlocal blocks
        begun.set()
        while True:  # for ever, if nobody says otherwise
            check_wanted()
            blocks += 1

    task = asyncio.ensure_future(in_thread(work))
    while not begun.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    seen = blocks
    await asyncio.sleep(0)
    assert blocks == seen, "the thread has ended"


def test_outside_of_a_thread_it_is_always_wanted() -> None:
    check_wanted()


@pytest.mark.parametrize("what", ["the cache", "a folder"])
async def test_hashing_a_large_file_is_given_up_between_two_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    checked, may_go_on = threading.Event(), threading.Event()

    def check(_: int = 0) -> None:
        checked.set()
        may_go_on.wait()
        check_wanted()

    monkeypatch.setattr("worker.files.disk_files.check_wanted", check)
    monkeypatch.setattr("worker.life.served_folders.check_wanted", check)
    content = bytes(3 << 20)
    with open_cache(tmp_path / "cache", 1 << 30) as cache:
        file = ManifestFile("model.onnx", sha256_of(content), len(content))
        (tmp_path / "cache" / "files" / file.sha256).write_bytes(content)
        (tmp_path / "model.toml").write_text(_DESCRIPTION)
        (tmp_path / "model.onnx").write_bytes(content)
        if what == "the cache":
            task = asyncio.ensure_future(in_thread(cache.holds, file))
        else:
            task = asyncio.ensure_future(_discarded(tmp_path))
        while not checked.is_set():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def _discarded(folder: Path) -> bool:
    await in_thread(read_served, folder)
    return True


def test_given_up_is_a_cancellation() -> None:
    assert WorkGivenUp.code.name == "CANCELLED"


_DESCRIPTION = """
name = "m"
engine = "onnx"
task = "tensor"
[[inputs]]
name = "x"
datatype = "FP32"
shape = [1]
[[outputs]]
name = "y"
datatype = "FP32"
shape = [1]
"""
