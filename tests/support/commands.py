"""`penstock` commands for tests that do other things at the same time; each says what it expects of the command."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from tests.support.mesh import ROOT, RunningMesh, environment

TIMEOUT_S = 90.0


async def ran(mesh: RunningMesh, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with that on its stdin."""

    def work() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", *words],
            input=typed,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            cwd=ROOT,
            env=environment(mesh.data),
            check=False,
        )

    return await asyncio.to_thread(work)


async def done(mesh: RunningMesh, *words: str, typed: str = "") -> str:
    """What a command printed that did what it was told."""
    ended = await ran(mesh, *words, typed=typed)
    assert ended.returncode == 0, f"penstock {' '.join(words)}: {ended.stderr}"
    return ended.stdout


async def refused(mesh: RunningMesh, *words: str, typed: str = "") -> str:
    """The one line of a command that did not."""
    ended = await ran(mesh, *words, typed=typed)
    assert ended.returncode == 1, f"penstock {' '.join(words)} was done: {ended.stdout}"
    assert "Traceback" not in ended.stderr
    assert "penstock: " in ended.stderr
    return ended.stderr.partition("penstock: ")[2].strip()


async def until_shown(mesh: RunningMesh, *words: str, says: str = "", not_: str = "", patience_s: float = 30.0) -> str:
    """What the command printed once it printed this, and not that; before that it may fail."""
    seen = ""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                ended = await ran(mesh, *words)
                seen = ended.stdout + ended.stderr
                if ended.returncode == 0 and says in ended.stdout and not (not_ and not_ in ended.stdout):
                    return ended.stdout
    except TimeoutError:
        raise AssertionError(
            f"{says!r} without {not_!r} was expected within {patience_s:.0f} s; this is shown:\n{seen}"
        ) from None
