"""Tensors in system shared memory, between Triton's own client and a worker that serves alone on the same machine."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.mesh import ROOT, environment

SCENARIOS = Path(__file__).with_name("shared_memory_scenarios.py")
PREFIX = f"penstock-e2e-{os.getpid()}-"
pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this system has no /dev/shm")


def _names() -> list[str]:
    """Read from the text: importing the program would load Triton's descriptors here."""
    classes = [node for node in ast.parse(SCENARIOS.read_text()).body if isinstance(node, ast.ClassDef)]
    return [each.name for each in classes[0].body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    ready = tmp_path_factory.mktemp("worker") / "ready.json"
    words = ["worker", "--standalone", "--model-folder", str(ROOT / "cli" / "demo" / "digits"), "--kserve-port=0"]
    words += [f"--ready-file={ready}", f"--shared-memory-prefix={PREFIX}"]
    with subprocess.Popen([sys.executable, "-m", "cli", *words], env=environment(), cwd=ROOT) as worker:
        try:
            patience_s = time.monotonic() + 60
            while not ready.exists():
                assert worker.poll() is None, "the worker ended"
                assert time.monotonic() < patience_s, "the worker did not become ready"
                time.sleep(0.05)
            address = f"127.0.0.1:{json.loads(ready.read_text())['kserve_port']}"
            command = [sys.executable, str(SCENARIOS), address, PREFIX]
            done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
        finally:
            worker.terminate()
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("scenario", _names())
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == "ok", outcomes[scenario]
