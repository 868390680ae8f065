"""Triton's own client against the mesh: only the address changes, and a key is sent along.

pip install tritonclient[grpc] pillow
python examples/triton_infer.py examples/digits/7.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from PIL import Image


def main() -> None:
    profile = json.loads(Path(".penstock/client.json").read_text())
    picture = Image.open(sys.argv[1] if len(sys.argv) > 1 else "examples/digits/7.png")
    grey = picture.convert("L").resize((8, 8), Image.Resampling.BOX)
    pixels = (np.asarray(grey, dtype=np.float32) / 255).reshape(1, 1, 8, 8)
    client = triton.InferenceServerClient(profile["grpc_address"])
    tensor = triton.InferInput("image", list(pixels.shape), "FP32")
    tensor.set_data_from_numpy(pixels)
    wanted = [triton.InferRequestedOutput("logits", class_count=1)]
    headers = {"authorization": f"Bearer {profile['api_key']}"}
    result = client.infer("digits", [tensor], outputs=wanted, headers=headers)
    score, _, digit = result.as_numpy("logits")[0][0].decode().split(":")
    print(f"it is a {digit} (score {float(score):.2f})")


if __name__ == "__main__":
    main()
