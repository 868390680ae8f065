"""Clients in other languages, with stubs generated from our protocol files: what `examples/stubs` shows, against a real mesh.

Needs Node with npm, or Go with the packages that Debian has of gRPC; without them a test skips and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.mesh import ROOT, RunningMesh, running_mesh

STUBS = ROOT / "examples" / "stubs"
GO_SOURCES = Path("/usr/share/gocode")
INSTALL_S = 240


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("languages") / "data", "--workers", "1") as running:
        yield running


def example(language: str, folder: Path) -> Path:
    """A copy of one example, with the protocol files where it looks for them."""
    (folder / "protos").symlink_to(ROOT / "protos")
    ignored = shutil.ignore_patterns("node_modules", "gen", "inference")
    return shutil.copytree(STUBS / language, folder / "examples" / "stubs" / language, ignore=ignored)


def run(folder: Path, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = 60) -> str:
    """What it printed. Fails with all it said where it ended with an error."""
    told = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **(environment or {})}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=told, timeout=timeout_s, check=False)
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed and generated."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node with npm on PATH")
    folder = example("node", tmp_path_factory.mktemp("node"))
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_S,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"npm could not install the example's packages: {installed.stderr.strip()[-200:]}")
    (folder / "gen").mkdir()
    run(folder, "npm", "run", "generate")
    return folder


def test_the_node_example_answers(mesh: RunningMesh, node: Path) -> None:
    assert run(node, "node", "infer.js", mesh.grpc_address, mesh.api_key).startswith("it is a ")


def test_the_node_example_says_what_was_wrong(mesh: RunningMesh, node: Path) -> None:
    done = subprocess.run(
        ["node", "infer.js", mesh.grpc_address, "sk-nobody"], cwd=node, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("16: this API key is unknown")


def test_grpc_js_meets_statuses_streams_and_cancellation(mesh: RunningMesh, node: Path) -> None:
    shutil.copy(Path(__file__).with_name("node_scenarios.js"), node)
    printed = run(node, "node", "node_scenarios.js", mesh.grpc_address, mesh.api_key)
    assert json.loads(printed) == ["unary", "errors", "stream", "cancelled"]


def test_grpc_js_comes_through_envoy(mesh: RunningMesh, node: Path) -> None:
    shutil.copy(Path(__file__).with_name("node_scenarios.js"), node)
    run(node, "node", "node_scenarios.js", mesh.http_url.partition("//")[2], mesh.api_key)


def test_the_go_example_answers(mesh: RunningMesh, tmp_path: Path) -> None:
    missing = [word for word in ("go", "protoc", "protoc-gen-go") if shutil.which(word) is None]
    if missing or not (GO_SOURCES / "src" / "google.golang.org" / "grpc").is_dir():
        pytest.skip(f"needs Go, protoc and Debian's golang-google-grpc-dev; not found: {', '.join(missing) or GO_SOURCES}")
    folder = example("go", tmp_path)
    run(folder, "./generate.sh")
    workspace = tmp_path / "workspace" / "src"
    workspace.mkdir(parents=True)
    (workspace / "penstock.example").symlink_to(folder)
    environment = {
        "GO111MODULE": "off",
        "GOPATH": f"{workspace.parent}{os.pathsep}{GO_SOURCES}",
        "GOCACHE": str(tmp_path / "cache"),
        "PWD": str(workspace / "penstock.example"),
    }
    run(workspace / "penstock.example", "go", "build", "-o", "infer", ".", environment=environment, timeout_s=INSTALL_S)
    assert run(folder, "./infer", mesh.grpc_address, mesh.api_key).startswith("it is a ")


def test_the_python_example_answers(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = example("python", tmp_path)
    outputs = ("--python_out=.", "--grpc_python_out=.")
    files = ("inference/grpc_service.proto", "inference/model_config.proto")
    run(folder, sys.executable, "-m", "grpc_tools.protoc", "--proto_path=../../../protos", *outputs, *files)
    printed = run(folder, sys.executable, "infer.py", mesh.grpc_address, mesh.api_key, environment={"PYTHONPATH": str(folder)})
    assert printed.startswith("it is a ")
