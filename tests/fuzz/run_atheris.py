"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.run_atheris execute --seconds 300`.

Keeps what it finds interesting in a folder, and goes on from there the next time. A failing input is written beside it and
printed; `--replay FILE` runs it again. Needs the package atheris, which is no dependency of the project's: without it, it says
so and ends well.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import structlog

_INSTRUMENTED = ("worker", "runtime", "gateway", "scheduler")
_LONGEST_BYTES = 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=None, help="folder to keep inputs in; none: one in the temporary folder")
    parser.add_argument("--replay", type=Path, default=None, help="run this input once, without a fuzzer")
    arguments = parser.parse_args()
    structlog.configure(processors=[_dropped])
    if arguments.replay is not None:
        _targets()[arguments.target](arguments.replay.read_bytes())
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.stdout.write("skipped: coverage-guided fuzzing needs the package atheris (pip install atheris)\n")
        return 0
    _fuzz(arguments.target, arguments.seconds, arguments.corpus or Path(tempfile.gettempdir()) / "penstock-fuzz")
    return 0


def _fuzz(name: str, seconds: int, corpus: Path) -> None:
    import atheris

    folder = corpus / name
    folder.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=list(_INSTRUMENTED)):
        target = _targets()[name]

    def once(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            traceback.print_exc()
            raise

    limits = [f"-max_total_time={seconds}", f"-max_len={_LONGEST_BYTES}", "-len_control=0", "-timeout=60", "-rss_limit_mb=4096"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={corpus}/{name}-", str(folder)], once)
    atheris.Fuzz()


def _targets() -> Any:
    # Imported late: what is to be instrumented must not have been imported before.
    from tests.fuzz.targets import TARGETS

    return TARGETS


def _dropped(_: Any, __: str, event: Any) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
