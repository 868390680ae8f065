"""Compiles the demo `digits` for TensorRT-RTX: the recipe to copy for a model of one's own.

Owns the choice of profiles, targets and precisions, nothing else: it calls what `penstock build-engine` calls. Needs no GPU.

    python build/tensorrt.py OUTPUT_FOLDER

Writes OUTPUT_FOLDER/digits-fp32 and -fp16, model folders for `penstock models push`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "gen")]

from cli.build_engine import build_engine, build_options, summary  # noqa: E402
from runtime.errors import PenstockError  # noqa: E402

DIGITS = ROOT / "cli" / "demo" / "digits" / "model.onnx"
PROFILES = ("image:1x1x8x8", "image:1x1x8x8,16x1x8x8,64x1x8x8")
"""A request alone is worth kernels of its own; batches share the rest."""
TARGETS = ("8.0", "8.6", "8.9", "12.0")


async def build_digits(output: Path, precision: str) -> list[str]:
    folder = output / f"digits-{precision}"
    built = await build_engine(DIGITS, folder, build_options(PROFILES, TARGETS, precision, 0))
    return summary(built, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the demo model for TensorRT-RTX.")
    parser.add_argument("output", type=Path, metavar="OUTPUT_FOLDER")
    options = parser.parse_args(arguments)
    for precision in ("fp32", "fp16"):
        try:
            lines = asyncio.run(build_digits(options.output, precision))
        except PenstockError as error:
            print(f"build/tensorrt.py: {error.message}", file=sys.stderr)
            return 1
        print(*lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
