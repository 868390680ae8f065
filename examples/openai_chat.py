"""The official `openai` package against the mesh: only the address and the key change. `pip install openai`.

python examples/openai_chat.py "12+34"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from openai import OpenAI


def main() -> None:
    profile = json.loads(Path(".penstock/client.json").read_text())
    client = OpenAI(base_url=f"{profile['http_url']}/v1", api_key=profile["api_key"])
    question = sys.argv[1] if len(sys.argv) > 1 else "12+34"
    stream = client.chat.completions.create(model="sums", messages=[{"role": "user", "content": question}], stream=True)
    for chunk in stream:
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
