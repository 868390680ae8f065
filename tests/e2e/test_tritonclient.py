"""Triton's own client, by changing the address. The scenarios run once, in a process without our descriptors."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mesh import RunningMesh

SCENARIOS = Path(__file__).with_name("triton_scenarios.py")


def _names() -> list[str]:
    """Read from the text: importing the program would load Triton's descriptors here."""
    found = []
    for node in ast.parse(SCENARIOS.read_text()).body:
        if isinstance(node, ast.ClassDef):
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            found += [f"{node.name.lower()}.{each.name}" for each in functions if not each.name.startswith("_")]
    return found


@pytest.fixture(scope="module")
def outcomes(mesh: RunningMesh) -> dict[str, str]:
    command = [sys.executable, str(SCENARIOS), mesh.grpc_address, mesh.api_key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("scenario", _names())
def test_scenario(outcomes: dict[str, str], scenario: str) -> None:
    assert outcomes[scenario] == "ok", outcomes[scenario]
