"""`penstock up` as a user meets it: it answers, heals, says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import time
from pathlib import Path

import psutil
import pytest

from tests.support.mesh import ROOT, RunningMesh, penstock, running_mesh


@pytest.mark.parametrize("digit", range(10))
def test_infer_names_the_digit(mesh: RunningMesh, digit: int) -> None:
    done = mesh.penstock("infer", "digits", "--image", str(ROOT / "examples" / "digits" / f"{digit}.png"), "--top", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^ *{digit} +\d", done.stdout, re.MULTILINE), done.stdout


def test_chat_answers_the_sum(mesh: RunningMesh) -> None:
    done = mesh.penstock("chat", "sums", "12+34")
    assert (done.returncode, done.stdout.strip()) == (0, "12 + 34 = 46"), done.stderr


def test_fleet_shows_both_workers_with_both_models(mesh: RunningMesh) -> None:
    done = mesh.penstock("fleet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digits 1: READY") == 2
    assert done.stdout.count("sums 1: READY") == 2


def test_models_are_listed_with_their_signer(mesh: RunningMesh) -> None:
    done = mesh.penstock("models", "list")
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout
    assert "2 READY" in done.stdout


def test_a_pushed_folder_is_published_once(mesh: RunningMesh) -> None:
    done = mesh.penstock("models", "push", str(ROOT / "cli" / "demo" / "digits"))
    assert done.returncode == 0, done.stderr
    assert "already published" in done.stdout


def test_a_model_is_pushed_unloaded_and_loaded_again(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = tmp_path / "numerals"
    shutil.copytree(ROOT / "cli" / "demo" / "digits", folder)
    description = (folder / "model.toml").read_text()
    (folder / "model.toml").write_text(description.replace('name = "digits"', 'name = "numerals"'))
    image = str(ROOT / "examples" / "digits" / "4.png")
    pushed = mesh.penstock("models", "push", str(folder))
    assert "numerals version 1: 2 of 2 copies are ready" in pushed.stdout, pushed.stderr
    assert mesh.penstock("infer", "numerals", "--image", image).returncode == 0
    assert "is unloaded" in mesh.penstock("models", "unload", "numerals").stdout
    assert mesh.penstock("infer", "numerals", "--image", image).returncode == 1
    assert "1 of 1 copies are ready" in mesh.penstock("models", "load", "numerals", "--copies", "1").stdout
    assert mesh.penstock("infer", "numerals", "--image", image).returncode == 0
    assert mesh.penstock("models", "unload", "numerals").returncode == 0


def test_a_model_that_cannot_load_says_why(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    description = (ROOT / "cli" / "demo" / "digits" / "model.toml").read_text()
    (folder / "model.toml").write_text(description.replace('name = "digits"', 'name = "broken"'))
    (folder / "model.onnx").write_bytes(b"not a model")
    pushed = mesh.penstock("models", "push", str(folder))
    assert pushed.returncode == 1
    assert "did not load on 2 of 2 workers" in pushed.stderr
    assert mesh.penstock("models", "unload", "broken").returncode == 0


def test_a_key_is_created_used_and_revoked(mesh: RunningMesh) -> None:
    made = mesh.penstock("keys", "create", "for a test", "--model", "sums")
    assert made.returncode == 0, made.stderr
    secret = made.stdout.strip()
    image = str(ROOT / "examples" / "digits" / "3.png")
    assert mesh.penstock("chat", "sums", "12+34", "--key", secret).stdout.strip() == "12 + 34 = 46"
    refused = mesh.penstock("infer", "digits", "--image", image, "--key", secret)
    assert refused.returncode == 1
    assert "digits" in refused.stderr
    key_id = secret.split("-")[2]
    assert mesh.penstock("keys", "revoke", key_id).returncode == 0
    assert "revoked" in mesh.penstock("keys", "list").stdout
    assert mesh.penstock("chat", "sums", "12+34", "--key", secret).returncode == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("infer", "nothing", "--image", "examples/digits/1.png"), "nothing"),
        (("infer", "digits", "--image", "no-such.png"), "no file"),
        (("infer", "digits", "--input", "image=[[1]]"), "image"),
        (("infer", "digits", "--input", "picture=1"), "image FP32"),
        (("chat", "nothing", "hello"), "nothing"),
        (("chat", "sums", "12+34", "--key", "sk-pn-wrong"), "key"),
        (("models", "push", "examples"), "model.toml"),
        (("models", "load", "nothing"), "nothing"),
        (("keys", "revoke", "nobody"), "nobody"),
        (("fleet", "--data", "/nonexistent"), "penstock up"),
    ],
)
def test_mistakes_get_one_clear_line(mesh: RunningMesh, words: tuple[str, ...], says: str) -> None:
    done = mesh.penstock(*words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("penstock: ")
    assert says in done.stderr


def test_a_taken_port_is_named_with_what_to_pass(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = penstock("up", "--data", str(tmp_path), "--grpc-port", port)
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert "--grpc-port" in done.stderr


def test_a_second_up_on_the_same_data_is_refused(mesh: RunningMesh) -> None:
    done = penstock("up", "--data", str(mesh.data), "--grpc-port", "0", "--http-port", "0")
    assert done.returncode == 1
    assert "another `penstock up`" in done.stderr


def test_a_killed_up_leaves_no_process(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data", "--workers", "1", "--no-demo") as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        os.kill(running.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_ctrl_c_leaves_no_process_and_a_restart_keeps_everything(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data", "--workers", "1") as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        key = running.api_key
        worker = running.penstock("fleet").stdout
    _, alive = psutil.wait_procs(children, timeout=1)
    assert not alive
    assert running.process.returncode == 0
    with running_mesh(tmp_path / "data", "--workers", "1") as again:
        assert again.api_key == key
        assert again.penstock("chat", "sums", "20+22").stdout.strip() == "20 + 22 = 42"
        worker_id = next(word for word in worker.split() if len(word) == 20 and word.isalnum())
        assert worker_id in again.penstock("fleet").stdout
        assert again.penstock("models", "list").stdout.count("digits") == 1


def test_a_killed_child_comes_back(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data") as running:
        for name in ("worker-1", "scheduler", "envoy", "gateway", "registry"):
            before = running.pid_of(name)
            os.kill(before, signal.SIGKILL)
            _until(lambda name=name, before=before: _other_pid(running, name, before))
        _until(lambda: running.penstock("chat", "sums", "12+34").stdout.strip() == "12 + 34 = 46")
        _until(lambda: running.penstock("fleet").stdout.count("digits 1: READY") == 2)
        _until(lambda: "no answer" not in running.penstock("fleet").stdout)
        assert "ended by SIGKILL" in (running.data.parent / "data.out").read_text()


def _other_pid(running: RunningMesh, name: str, before: int) -> bool:
    try:
        return running.pid_of(name) != before
    except (LookupError, psutil.Error):
        return False


def _until(condition: object, timeout_s: float = 30) -> None:
    assert callable(condition)
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.1)
