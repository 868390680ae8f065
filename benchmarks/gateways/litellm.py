"""LiteLLM's proxy: installed by pip into an environment of its own, started with one model and one key, without a database."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

PACKAGE = "litellm[proxy]==1.106.2"
KEY = "sk-of-the-benchmark"
MODEL = "mock"
_INSTALL_S, _START_S = 900, 120.0
_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params:
      model: openai/mock
      api_base: http://127.0.0.1:{port}/v1
      api_key: sk-upstream
litellm_settings:
  num_retries: 0
  telemetry: false
general_settings:
  master_key: {key}
"""


def litellm_environment(folder: Path, console: Console) -> Path | None:
    """The `litellm` command; installed now where the folder has none. None, with the reason on screen, where it cannot be."""
    command = folder / "bin" / "litellm"
    if command.exists():
        return command
    console.print(f"installing {PACKAGE} into {folder} (minutes, once)", markup=False)
    venv.create(folder, with_pip=True)
    done = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", PACKAGE], capture_output=True, text=True, timeout=_INSTALL_S, check=False
    )
    if done.returncode:
        console.print(f"LiteLLM is left out, pip could not install it: {done.stderr.strip()[-300:]}", markup=False)
        return None
    return command


@contextmanager
def litellm_proxy(command: Path, folder: Path, upstream_port: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Its process and its port, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "litellm.yaml"
    config.write_text(_CONFIG.format(model=MODEL, port=upstream_port, key=KEY))
    # Its price list is fetched from the network otherwise.
    quiet = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "NO_DOCS": "True"}
    words = [str(command), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=quiet, cwd=folder)
    try:
        _await_ready(process, port, folder / "litellm.log")
        yield process, port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end_s = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"LiteLLM did not start:\n{log.read_text(errors='replace')[-2000:]}") from None
            time.sleep(0.2)
