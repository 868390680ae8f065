"""Commands of one module of the command line, run as a process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


async def command(module: str, name: str, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    program = f"import sys, typer; sys.path[:0] = {[str(ROOT), str(ROOT / 'gen')]!r}\nfrom cli.{module} import {name} as app\n"
    program += "app() if isinstance(app, typer.Typer) else typer.run(app)"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(stdin.encode())
    return process.returncode or 0, out.decode(), err.decode()
