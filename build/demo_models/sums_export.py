"""Turns the checkpoint of `sums_train.py` into the folder ONNX Runtime GenAI loads, and measures what came out.

Owns the exported folder's contents: `model.onnx` (one file, float32), `genai_config.json`, `tokenizer.json` and
`tokenizer_config.json`. Leaves `model.toml`, which is written by hand, alone. Never trains.

Hold-out rule, as in `sums_train.py` and `tests/demo/test_sums.py`: `(a * b) % 7 == 3`.

    python build/demo_models/sums_export.py CHECKPOINT_FOLDER MODEL_FOLDER
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import onnxruntime_genai as genai

LONGEST_ANSWER_TOKENS = 24
BAR = 0.95


def held_out(a: int, b: int) -> bool:
    """Whether the pair was kept from training."""
    return (a * b) % 7 == 3


def export(checkpoint: Path, target: Path) -> None:
    """The checkpoint through GenAI's model builder, packed into one ONNX file."""
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch, "built")
        subprocess.run(
            [
                *(sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(built)),
                *("-p", "fp32", "-e", "cpu", "-c", str(Path(scratch, "cache"))),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        target.mkdir(parents=True, exist_ok=True)
        model = onnx.load(built / "model.onnx")
        onnx.save(model, target / "model.onnx")
        settings = json.loads((built / "genai_config.json").read_text())
    # One thread a session: the model is so small that handing work to a second thread costs more than it saves.
    settings["model"]["decoder"]["session_options"] |= {"intra_op_num_threads": 1, "inter_op_num_threads": 1}
    # Greedy unless a request asks otherwise: sums have one right answer.
    settings["search"] |= {"do_sample": False, "top_k": 1}
    (target / "genai_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    # The builder's copies are rewritten by transformers; the checkpoint's say the same with the chat template inline.
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(checkpoint / name, target / name)


def answer(model: genai.Model, tokenizer: genai.Tokenizer, asked: str) -> str:
    """What the model says to one user message, greedily, up to its end token."""
    prompt = tokenizer.encode(tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": asked}])))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + LONGEST_ANSWER_TOKENS, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    if generator.token_count() == len(prompt) + LONGEST_ANSWER_TOKENS:
        return "(did not end)"
    return str(tokenizer.decode(generator.get_sequence(0)[len(prompt) :]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Export the sums demo model and measure it.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model_folder", type=Path)
    asked = parser.parse_args()
    export(asked.checkpoint, asked.model_folder)
    model = genai.Model(str(asked.model_folder))
    tokenizer = genai.Tokenizer(model)
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100) if held_out(a, b)]
    phrasings = ("{a}+{b}", "{a} + {b}", "What is {a} + {b}?")
    wrong = []
    for phrasing in phrasings:
        for done, (a, b) in enumerate(pairs, start=1):
            said = answer(model, tokenizer, phrasing.format(a=a, b=b))
            if said != f"{a} + {b} = {a + b}":
                wrong.append((phrasing.format(a=a, b=b), said))
            if done % 250 == 0 or done == len(pairs):
                print(f"sums: {phrasing!r}  {done}/{len(pairs)} held-out pairs, {len(wrong)} wrong so far", flush=True)
    right = 1 - len(wrong) / (len(pairs) * len(phrasings))
    total_bytes = sum(file.stat().st_size for file in asked.model_folder.iterdir())
    print(f"sums: held-out exact {right:.2%}, {total_bytes:,} bytes; wrong: {wrong[:5]}", flush=True)
    if right < BAR:
        raise SystemExit(f"sums: {right:.2%} of held-out sums are right, below {BAR:.0%}: train with more --steps")


if __name__ == "__main__":
    main()
