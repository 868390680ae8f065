"""Makes the `digits` demo: a small CNN on scikit-learn's handwritten digits, as one ONNX file, and the example images.

Owns the model's graph (written node by node, so the file holds nothing but the network), its training and the rule that
turns an image into the input tensor. Reads nothing but the data set inside the scikit-learn wheel.

Hold-out rule, repeated in `tests/demo/test_digits.py`: sample `index % 5 == 0` is never trained on.

Image rule, repeated in the test and followed by every client: convert to 8-bit grey, resize to 8 x 8 by area
(`PIL.Image.Resampling.BOX`), divide by 255, shape float32 [1, 8, 8]; ink is bright, paper is dark. The data set's own
values 0..16 are divided by 16, which gives the same 0..1.

    python build/demo_models/digits.py MODEL_FOLDER EXAMPLES_FOLDER
"""

# mypy: disable-error-code="import-not-found"
# mypy: allow-subclassing-any

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

SEED = 20
EPOCHS = 15
ROWS_PER_STEP = 64
EXAMPLE_PIXELS = 64
OPSET, IR_VERSION = 21, 10  # what onnxruntime 1.20 and later load

Floats = NDArray[np.float32]


class Network(nn.Module):
    """Three convolutions at 8 x 8, one at 4 x 4 and a linear layer: about a tenth of a millisecond a row on one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.widen = nn.Conv2d(32, 64, 3, padding=1)
        self.refine = nn.Conv2d(64, 64, 3, padding=1)
        self.narrow = nn.Conv2d(64, 32, 3, padding=1)
        self.classify = nn.Linear(32 * 4 * 4, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.widen(self.stem(image).relu()).relu()
        features = (features + self.refine(features)).relu()
        features = self.narrow(nn.functional.max_pool2d(features, 2)).relu()
        return torch.as_tensor(self.classify(nn.functional.dropout(features.flatten(1), 0.3, self.training)))


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to one pixel and a little brighter or darker, so that the hold-out's writers are no surprise."""
    rows = images.shape[0]
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    # Most stay where they are: digits touch the top and bottom edge of their 8 x 8 box.
    down, right = (torch.multinomial(torch.tensor([0.15, 0.7, 0.15]), rows, replacement=True) for _ in range(2))
    moved = torch.stack([padded[i, :, d : d + 8, r : r + 8] for i, (d, r) in enumerate(zip(down, right, strict=True))])
    noise = 0.05 * torch.randn_like(moved)
    return (moved * (0.85 + 0.3 * torch.rand(rows, 1, 1, 1)) + noise).clamp(0.0, 1.0)


def train(images: Floats, labels: NDArray[np.int64]) -> Network:
    """The trained network, in evaluation mode."""
    torch.manual_seed(SEED)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    inputs, wanted = torch.from_numpy(images), torch.from_numpy(labels)
    for epoch in range(1, EPOCHS + 1):
        total_loss = 0.0
        for rows in torch.randperm(len(inputs)).split(ROWS_PER_STEP):
            loss = nn.functional.cross_entropy(network(shifted(inputs[rows])), wanted[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += loss.item() * len(rows)
        schedule.step()
        if epoch % 3 == 0:
            print(f"digits: epoch {epoch}/{EPOCHS}  loss {total_loss / len(inputs):.4f}", flush=True)
    network.eval()
    return network


def to_onnx(network: Network) -> onnx.ModelProto:
    """The network as ONNX: `image` float32 [rows, 1, 8, 8] -> `logits` float32 [rows, 10]."""
    nodes = []

    def add(operator: str, inputs: list[str], output: str, **attributes: int | list[int]) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], output, None, None, None, **attributes))
        return output

    def convolve(layer: str, source: str, output: str) -> str:
        return add("Conv", [source, f"{layer}.weight", f"{layer}.bias"], output, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    features = add("Relu", [convolve("stem", "image", "stem")], "stem_relu")
    features = add("Relu", [convolve("widen", features, "widen")], "widen_relu")
    features = add("Relu", [add("Add", [features, convolve("refine", features, "refine")], "residual")], "refine_relu")
    features = add("MaxPool", [features], "pool", kernel_shape=[2, 2], strides=[2, 2])
    features = add("Relu", [convolve("narrow", features, "narrow")], "narrow_relu")
    features = add("Flatten", [features], "flat", axis=1)
    add("Gemm", [features, "classify.weight", "classify.bias"], "logits", transB=1)
    weights = [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in network.state_dict().items()]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "penstock build/demo_models"
    onnx.checker.check_model(model, full_check=True)
    return model


def image_to_tensor(path: Path) -> Floats:
    """An image file as the model's input, float32 [1, 8, 8] in 0..1."""
    with Image.open(path) as image:
        grey = image.convert("L").resize((8, 8), Image.Resampling.BOX)
    return (np.asarray(grey, dtype=np.float32) / 255.0)[None]


def write_examples(folder: Path, images: Floats, labels: NDArray[np.int64], logits: Floats) -> None:
    """The first held-out sample of each class that the model is right about, magnified without smoothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in range(10):
        index = next(i for i in range(len(labels)) if labels[i] == digit and logits[i].argmax() == digit)
        grey = np.rint(images[index, 0] * 255.0).astype(np.uint8)
        large = Image.fromarray(grey).resize((EXAMPLE_PIXELS, EXAMPLE_PIXELS), Image.Resampling.NEAREST)
        large.save(folder / f"{digit}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits demo model and write its examples.")
    parser.add_argument("model_folder", type=Path)
    parser.add_argument("examples_folder", type=Path)
    asked = parser.parse_args()
    data = load_digits()
    images = (data.images / 16.0).astype(np.float32)[:, None]
    labels = data.target.astype(np.int64)
    kept = np.arange(len(labels)) % 5 == 0
    network = train(images[~kept], labels[~kept])
    asked.model_folder.mkdir(parents=True, exist_ok=True)
    target = asked.model_folder / "model.onnx"
    onnx.save(to_onnx(network), target)
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    logits = session.run(["logits"], {"image": images[kept]})[0]
    right = float((logits.argmax(1) == labels[kept]).mean())
    print(f"digits: held-out accuracy {right:.2%} on {kept.sum()} samples, {target.stat().st_size:,} bytes", flush=True)
    if right < 0.97:
        raise SystemExit(f"digits: held-out accuracy {right:.2%} is below 97 %: change the training, not the bar")
    write_examples(asked.examples_folder, images[kept], labels[kept], logits)


if __name__ == "__main__":
    main()
