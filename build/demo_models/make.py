"""Rebuilds every demo model in the tree, one step after the other, showing each step's progress.

Owns the order and the target folders only. Needs `requirements/models.txt` in an environment of its own; the package
itself is not imported. The seeds are fixed, yet another machine's arithmetic may end in slightly other weights: what is
promised is the held-out bar, which every step asserts and `tests/demo` asserts again.

    python build/demo_models/make.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def step(script: str, *arguments: Path) -> None:
    """One script of this folder, in its own process."""
    print(f"== {script}", flush=True)
    subprocess.run([sys.executable, str(HERE / script), *map(str, arguments)], check=True)


def main() -> None:
    demo = ROOT / "cli" / "demo"
    step("digits.py", demo / "digits", ROOT / "examples" / "digits")
    with tempfile.TemporaryDirectory() as scratch:
        step("sums_train.py", Path(scratch))
        step("sums_export.py", Path(scratch), demo / "sums")


if __name__ == "__main__":
    main()
