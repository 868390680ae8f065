"""Loads with a configuration and files, between Triton's own client and a worker that serves a Triton repository alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runtime.triton_repository import plain
from tests.support.mesh import ROOT, environment
from tests.worker.onnx_models import identity

SCENARIOS = Path(__file__).with_name("override_scenarios.py")


def _names() -> list[str]:
    """Read from the text: importing the program would load Triton's descriptors here."""
    classes = [node for node in ast.parse(SCENARIOS.read_text()).body if isinstance(node, ast.ClassDef)]
    return [each.name for each in classes[0].body if isinstance(each, ast.FunctionDef) and not each.name.startswith("_")]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("worker")
    plain(home / "models" / "plain", (1, 3))
    negating = identity(home / "negating", "FP32", operator="Neg") / "model.onnx"
    uploads, ready = home / "tmp", home / "ready.json"
    uploads.mkdir()
    words = ["worker", "--standalone", "--model-repository", str(home / "models"), "--kserve-port=0", f"--ready-file={ready}"]
    environs = {**environment(), "TMPDIR": str(uploads)}
    with subprocess.Popen([sys.executable, "-m", "cli", *words], env=environs, cwd=ROOT) as worker:
        try:
            patience_s = time.monotonic() + 60
            while not ready.exists():
                assert worker.poll() is None, "the worker ended"
                assert time.monotonic() < patience_s, "the worker did not become ready"
                time.sleep(0.05)
            address = f"127.0.0.1:{json.loads(ready.read_text())['kserve_port']}"
            command = [sys.executable, str(SCENARIOS), address, str(negating)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        finally:
            worker.terminate()
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    left = [path.name for path in uploads.iterdir() if path.name.startswith("penstock-")]
    told["nothing is left"] = "ok" if not left else f"left behind: {left}"
    return told


@pytest.mark.parametrize("scenario", [*_names(), "nothing is left"])
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == "ok", outcomes[scenario]
