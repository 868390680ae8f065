"""Runs one command: its coroutine on a loop, its failure as one clear line."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from runtime.errors import PenstockError

T = TypeVar("T")
_DEBUG = "PENSTOCK_DEBUG"


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's result. A PenstockError or a failed call ends the program with status 1 and one line on stderr."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        sentence = clear_line(error)
        if sentence is None:
            raise
        typer.secho(f"penstock: {sentence}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from None


def clear_line(error: BaseException) -> str | None:
    """What to tell a person of this failure; None for a bug, which deserves its traceback."""
    if isinstance(error, BaseExceptionGroup):
        lines = [clear_line(inner) for inner in error.exceptions]
        return None if None in lines else "; ".join(line for line in lines if line)
    if isinstance(error, PenstockError):
        return error.message
    if isinstance(error, OSError):
        return str(error)
    return _of_call(error)


def _of_call(error: BaseException) -> str | None:
    import grpc.aio

    if isinstance(error, grpc.aio.AioRpcError):
        code, sentence = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and "connect" in sentence.lower():
            return "nothing answers there; is the mesh up? (`penstock up` starts one, `penstock doctor` looks for causes)"
        return f"{sentence} ({code.name})"
    return None
