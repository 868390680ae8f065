"""A page in a real browser, of another origin than the mesh: gRPC-Web and OpenAI's events, by what the edge lets pages do.

Needs Chromium, and Node with npm; without them it skips and says so.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.mesh import ROOT, RunningMesh, running_mesh

SOURCES = Path(__file__).with_name("browser")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NPM_S = 240


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def run(folder: Path, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, env=told, timeout=timeout_s, check=False)


@dataclass(frozen=True, slots=True)
class Page:
    """A page that is ready to be opened, and the origin it will have."""

    browser: str
    folder: Path
    port: int

    def opened(self, mesh: RunningMesh, key: str | None = None) -> dict[str, Any]:
        """What it met."""
        words = ("node", "run.js", self.browser, str(self.port), mesh.http_url, mesh.api_key if key is None else key)
        done = run(self.folder, *words)
        assert done.returncode == 0, done.stderr
        met: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return met


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"needs a browser on PATH: {', '.join(BROWSERS)}")
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node with npm on PATH")
    folder = tmp_path_factory.mktemp("page") / "browser"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules", "gen", "site"))
    (folder / "protos").symlink_to(ROOT / "protos")
    (folder / "gen").mkdir()
    installed = run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", timeout_s=NPM_S)
    if installed.returncode:
        pytest.skip(f"npm could not install the page's packages: {installed.stderr.strip()[-200:]}")
    for script in ("generate", "bundle"):
        done = run(folder, "npm", "run", script)
        assert done.returncode == 0, done.stdout + done.stderr
    return Page(browser, folder, free_port())


@pytest.fixture(scope="module")
def mesh(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    settings = {"PENSTOCK_CORS_ORIGINS": json.dumps([f"http://127.0.0.1:{page.port}"])}
    with running_mesh(tmp_path_factory.mktemp("browser") / "data", "--workers", "1", settings=settings) as running:
        yield running


def test_a_page_of_an_allowed_origin_infers_and_reads_events(page: Page, mesh: RunningMesh) -> None:
    met = page.opened(mesh)
    assert "failure" not in met, met["failure"]
    assert (met["id"], met["scores"]) == ("from a page", 10)
    assert met["unknown"].startswith("NotFound: Request for unknown model: 'nobody'")
    assert met["stranger"].startswith("Unauthenticated: this API key is unknown")
    assert met["seenId"] == "r-of-the-page"
    assert met["events"].startswith("data: {")
    assert met["events"].endswith("data: [DONE]\n\n")


def test_a_page_of_another_origin_reads_nothing(page: Page, mesh: RunningMesh) -> None:
    met = Page(page.browser, page.folder, free_port()).opened(mesh)
    assert "scores" not in met
    assert "failure" in met
