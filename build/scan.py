"""Refuse what must never be committed: secrets, package-registry hosts, download addresses, paths of somebody's machine.

Reads the files git tracks or would track. Exits 1 naming each file and line.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_LARGEST_BYTES = 2 * 1024 * 1024
# Hosts are put together here, so that this file does not name what it forbids.
_HOSTS = "|".join(
    re.escape(".".join(parts))
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("crates", "io"),
        ("pypi", "nvidia", "com"),
    )
)
RULES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a private key", re.compile("-----BEGIN" + r" (?:[A-Z]+ )*PRIVATE KEY-----")),
    ("an API key", re.compile(r"\bsk-(?:pn|proj|ant)-[A-Za-z0-9]+-?[A-Za-z0-9_-]{24,}")),
    ("a cloud access key", re.compile(r"\bAKIA[0-9A-Z]{16}\b")),
    ("a package-registry host", re.compile(rf"\b(?:[a-z0-9-]+\.)*(?:{_HOSTS})\b")),
    ("a download address", re.compile(r"https?://[^\s\"']+\.(?:whl|tgz|tar\.gz)\b")),
    ("a path of one machine", re.compile(r"(?<![\w.])/(?:work|farm|root|home)/[a-z]")),
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    )
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def findings(file: Path) -> list[str]:
    name = file.relative_to(ROOT)
    if file.stat().st_size > _LARGEST_BYTES and not name.match("cli/demo/*/*"):
        return [f"{name}: over 2 MiB; weights and binaries stay out"]
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    return [f"{name}:{number}: {what}" for number, line in enumerate(lines, 1) for what, rule in RULES if rule.search(line)]


def main() -> int:
    files = tracked_files()
    found = [line for file in files for line in findings(file)]
    for line in found:
        print(line)
    print(f"scan: {len(files)} files, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
