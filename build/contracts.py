"""Holds the contracts to their rules: how they read (`lint`), and that no released caller is broken (`breaking`).

Decides nothing itself: protos/buf.yaml has the rules and buf applies them. buf would fetch google/api from a registry, so it is
given an image made by protoc here, and needs no network.

    python build/contracts.py lint                      names, style and format of protos/
    python build/contracts.py breaking [--against REF]  protos/ against the descriptor image that earlier commits carry
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
RULES = PROTOS / "buf.yaml"
COMMITTED_IMAGE = "gen/penstock.binpb"
NOT_OURS = ("--exclude-path", "google")


class CheckFailed(Exception):
    """The check could not be made; the message says what is missing."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check the contracts in protos/.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("lint", help="names, style and format")
    breaking_parser = commands.add_parser("breaking", help="changes that break a caller")
    breaking_parser.add_argument("--against", metavar="REF", help="a git commit; else main, HEAD and the commit before it")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-contracts-") as folder:
            image = Path(folder) / "now.binpb"
            build_image(image)
            return lint(image) if options.command == "lint" else breaking(image, options.against)
    except CheckFailed as failure:
        print(f"build/contracts.py: {failure}", file=sys.stderr)
        return 1


def lint(image: Path) -> int:
    well_named = buf("lint", image, "--config", RULES, *NOT_OURS)
    well_formed = buf("format", PROTOS, "--diff", "--exit-code")
    if well_named and well_formed:
        print("lint: protos/ keeps the rules of protos/buf.yaml and buf's format")
        return 0
    if not well_formed:
        print("lint: the differences above go away with: buf format -w protos")
    return 1


def breaking(image: Path, reference: str | None) -> int:
    commits = [resolved(reference)] if reference else list(baselines())
    if reference and commits == [None]:
        raise CheckFailed(f"git knows no commit {reference}; fetch it, or name another with --against")
    compared = broken = 0
    for commit in dict.fromkeys(commit for commit in commits if commit is not None):
        before = image.with_name(f"{commit}.binpb")
        if not committed_image(commit, before):
            continue
        compared += 1
        broken += not buf("breaking", image, "--against", before, "--config", RULES, "--against-config", RULES, *NOT_OURS)
        print(f"breaking: compared with {COMMITTED_IMAGE} of {commit[:12]}")
    if compared == 0:
        if reference:
            raise CheckFailed(f"{reference} carries no {COMMITTED_IMAGE} to compare with")
        print(f"breaking: no earlier commit carries {COMMITTED_IMAGE}, so there is nothing that could be broken")
    elif broken:
        print("breaking: callers of the earlier contracts would fail. Add fields and calls instead; reserve what is dropped.")
    else:
        print("breaking: every caller of the earlier contracts is still served")
    return 1 if broken else 0


def baselines() -> Iterator[str | None]:
    """The commits whose callers exist: where this branch left main, and the last two, so that main itself is guarded too."""
    for name in ("origin/main", "main"):
        if resolved(name) is not None:
            yield git("merge-base", "HEAD", name)
    yield resolved("HEAD")
    yield resolved("HEAD^")


def resolved(name: str) -> str | None:
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def git(*arguments: str) -> str | None:
    """What git answered, or None where it refused: no repository, no such commit, no history that deep."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def committed_image(commit: str, path: Path) -> bool:
    """Write the image that `commit` carries to `path`; False when it carries none."""
    done = subprocess.run(["git", "show", f"{commit}:{COMMITTED_IMAGE}"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode == 0:
        path.write_bytes(done.stdout)
    return done.returncode == 0


def build_image(path: Path) -> None:
    command = [sys.executable, str(ROOT / "build" / "protos.py"), "--image", str(path)]
    if subprocess.run(command, check=False).returncode != 0:
        raise CheckFailed("protos/ does not compile; the lines above say where")


def buf(*arguments: str | Path) -> bool:
    """Run buf, its findings going to stdout; True when it found nothing. It exits 100 for findings, else it could not look."""
    program = shutil.which("buf", path=sysconfig.get_path("scripts"))
    if program is None:
        raise CheckFailed(f"buf is not in {sysconfig.get_path('scripts')}; install requirements/dev.txt")
    done = subprocess.run([program, *map(str, arguments)], check=False, cwd=ROOT)
    if done.returncode not in {0, 100}:
        raise CheckFailed(f"buf {arguments[0]} could not look (it exited {done.returncode}); its words are above")
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
