"""MLServer with a model of ours: installed by pip into an environment of its own, started with its own settings.

In one process, as all that is measured beside it: workers of its own would add a hop between processes to each request.
"""

from __future__ import annotations

import json
import socket
import subprocess
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from rich.console import Console

from benchmarks.serving import Target, child

PACKAGES = ("mlserver==1.7.1", "onnxruntime==1.31.1")
BATCH_SIZE, BATCH_S = 64, 0.001
"""Of its adaptive batching: rows at most, and how long it waits for them."""
_INSTALL_S, _START_S = 600, 60

# Runs inside MLServer: the same session options as everywhere here, and whatever rows a request brings.
RUNTIME = """
import json, os
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name
        with open(os.environ["PEER_READY"] + ".draft", "w") as file:
            json.dump({"kserve_port": int(os.environ["MLSERVER_GRPC_PORT"])}, file)
        os.rename(os.environ["PEER_READY"] + ".draft", os.environ["PEER_READY"])
        return True

    async def predict(self, payload):
        array = NumpyCodec.decode_input(payload.inputs[0])
        (result,) = self._session.run([self._output], {self._input: array})
        return InferenceResponse(
            id=payload.id, model_name=self.name, outputs=[NumpyCodec.encode_output(self._output, result)]
        )
"""


def mlserver_environment(folder: Path, console: Console) -> Path | None:
    """The Python that has MLServer; made now where the folder has none. None, with the reason on screen, where it cannot be."""
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    with console.status("installing MLServer into an environment of its own"):
        venv.create(folder, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
        except subprocess.TimeoutExpired:
            console.print(f"MLServer skipped: pip was not done after {_INSTALL_S} s")
            return None
    if done.returncode:
        console.print(f"MLServer skipped: pip could not install it: {done.stderr.strip().splitlines()[-1:]}", markup=False)
        return None
    (folder / "installed").touch()
    return python


@contextmanager
def mlserver_target(folder: Path, model: str, file: Path, python: Path, *, batching: bool) -> Iterator[Target]:
    """An MLServer with this model, in a folder of its own, while the context lasts."""
    folder.mkdir()
    ready = folder / "ready.json"
    command = mlserver_command(folder, model, file, python, batching=batching)
    with child(command, ready, folder / "server.log") as (process, ports):
        address = f"127.0.0.1:{ports['kserve_port']}"
        with grpc.insecure_channel(address) as channel:  # its model may be loaded before its port is open
            grpc.channel_ready_future(channel).result(timeout=_START_S)
        yield Target("mlserver, batching" if batching else "mlserver", address, "", process.pid)


def mlserver_command(folder: Path, model: str, file: Path, python: Path, *, batching: bool) -> list[str]:
    """Its settings, in its own files and variables, and how it is started with them."""
    settings: dict[str, object] = {"name": model, "implementation": "peer_onnx.Onnx", "parameters": {"uri": str(file)}}
    if batching:
        settings |= {"max_batch_size": BATCH_SIZE, "max_batch_time": BATCH_S}
    (folder / "peer_onnx.py").write_text(RUNTIME)
    (folder / "model-settings.json").write_text(json.dumps(settings))
    (folder / "settings.json").write_text(json.dumps({"parallel_workers": 0, "host": "127.0.0.1"}))
    http_port, grpc_port, metrics_port = free_ports(3)
    environment = {
        "PEER_READY": str(folder / "ready.json"),
        "MLSERVER_HTTP_PORT": str(http_port),
        "MLSERVER_GRPC_PORT": str(grpc_port),
        "MLSERVER_METRICS_PORT": str(metrics_port),
    }
    words = [f"{name}={value}" for name, value in environment.items()]
    return ["/usr/bin/env", "-u", "PYTHONPATH", *words, str(python), "-m", "mlserver.cli.main", "start", str(folder)]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago: MLServer does not tell which ones it was given."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
