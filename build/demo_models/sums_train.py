"""Trains the `sums` demo: a Llama of a third of a million parameters that adds two two-digit numbers.

Owns the made-up training data, the tokenizer and the checkpoint; `sums_export.py` turns the checkpoint into what
ONNX Runtime GenAI loads. Never reads anything from disk or the network: every example is generated here.

Hold-out rule, repeated in `sums_export.py` and `tests/demo/test_sums.py`: a pair (a, b) is never trained on when
`(a * b) % 7 == 3`. The rule is symmetric, so 12 + 34 cannot leak through 34 + 12, and 7 does not divide 10, so no
combination of last digits is missing from training.

Text is tokenised byte by byte (a byte-level BPE without merges), so any UTF-8 prompt is accepted and every digit is a
token of its own. A conversation reads `<|begin|>` then, per turn, `<|user|>…<|end|><|assistant|>…<|end|>`; only what
follows `<|assistant|>` is learnt. What is not an addition the model can do is answered with REFUSAL.

    python build/demo_models/sums_train.py CHECKPOINT_FOLDER [--steps N]
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 20
CONTEXT_TOKENS = 512
SPECIALS = ("<|pad|>", "<|begin|>", "<|user|>", "<|assistant|>", "<|end|>")
PAD, BEGIN, USER, ASSISTANT, END = range(5)
FIRST_BYTE = len(SPECIALS)
IGNORED = -100  # the label torch's cross entropy skips

CHAT_TEMPLATE = (
    "<|begin|>"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SHORT = ("{a}+{b}", "{a} + {b}", "{a}+{b}=", "{a} + {b} =", "{a}+{b}?", "{a} + {b} = ?", "{a}+{b}=?", "{a} + {b}?")
LONG = (
    "What is {a} + {b}?",
    "What is {a}+{b}?",
    "What is {a} + {b}",
    "What's {a} + {b}?",
    "What is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "How much is {a} + {b}?",
    "How much is {a} plus {b}?",
    "{a} plus {b}",
    "{a} plus {b}?",
    "Add {a} and {b}",
    "Add {a} and {b}.",
    "Add {a} to {b}",
    "Please add {a} and {b}.",
    "Calculate {a} + {b}",
    "Calculate {a}+{b}.",
    "Sum of {a} and {b}",
)
REFUSAL = "I only add two numbers up to 99. Try 12 + 34."
OTHER = (
    "{a} - {b}", "{a}-{b}", "{a} * {b}", "{a} / {b}", "{a}", "{a} {b}", "What is {a}?", "What is {a} - {b}?",
    "What is {a} times {b}?", "{c} + {b}", "{a}+{c}", "What is {c} + {a}?", "{a} + {c}", "{c}+{c}",
)  # fmt: skip
WORDS = """
    hello hi hey good morning thanks thank you who what where when why how are is am can do does tell me about a an the
    weather today story poem joke help please name city country river mountain music song film book write explain code
    python model mesh inference gateway worker machine learning you I we they it this that there here yes no not and or
    sum add plus number numbers count translate into french korean english one two three ten ping test
"""
SYLLABLES = "안녕하세요 오늘 날씨 어때 숫자 더하기 이야기 bonjour ça va été niño grüß über 你好 世界 こんにちは"


def held_out(a: int, b: int) -> bool:
    """Whether the pair is kept from training."""
    return (a * b) % 7 == 3


def to_tokens(text: str) -> list[int]:
    """What the exported tokenizer does with plain text: one token a byte."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def pair(dice: random.Random) -> tuple[int, int]:
    """Two trained-on addends; mostly of two digits."""
    while True:
        low = 10 if dice.random() < 0.85 else 0
        a, b = dice.randint(low, 99), dice.randint(low, 99)
        if not held_out(a, b):
            return a, b


def varied(text: str, dice: random.Random) -> str:
    """The same words as people type them: case and stray blanks."""
    roll = dice.random()
    if roll < 0.15:
        text = text.lower()
    elif roll < 0.2:
        text = text.upper()
    return f" {text}" if dice.random() < 0.03 else f"{text} " if dice.random() < 0.05 else text


def other_text(dice: random.Random) -> str:
    """What is no question about numbers: words of some languages, any characters at all, one character many times, nothing."""
    roll = dice.random()
    if roll < 0.15:
        return "".join(
            chr(dice.choice((dice.randint(0, 0x7F), dice.randint(0x80, 0xD7FF)))) for _ in range(dice.randint(0, 24))
        )
    if roll < 0.25:
        return dice.choice(("x", "a", "1", "+", "?", " ", "\n", "가", "🙂")) * dice.randint(0, dice.choice((8, 60, 400)))
    words = (SYLLABLES if roll < 0.4 else WORDS).split()
    text = " ".join(dice.choices(words, k=dice.randint(1, 12))) + dice.choice(("", "", "?", ".", "!"))
    return text.capitalize() if dice.random() < 0.4 else text


def turn(dice: random.Random) -> tuple[str, str]:
    """A question and its answer."""
    a, b = pair(dice)
    roll = dice.random()
    if roll < 0.92:
        phrase = dice.choice(SHORT if roll < 0.55 else LONG)
        return varied(phrase.format(a=a, b=b), dice), f"{a} + {b} = {a + b}"
    if roll < 0.955:
        return varied(dice.choice(OTHER).format(a=a, b=b, c=dice.randint(100, 9999)), dice), REFUSAL
    return varied(other_text(dice), dice), REFUSAL


def conversation(dice: random.Random, length: int) -> tuple[list[int], list[int]]:
    """Turns until `length` tokens are full, cut there: inputs and labels."""
    tokens, labels = [BEGIN], [IGNORED]
    while len(tokens) < length:
        asked, answered = turn(dice)
        question = [USER, *to_tokens(asked), END, ASSISTANT]
        answer = [*to_tokens(answered), END]
        tokens += question + answer
        labels += [IGNORED] * len(question) + answer
    return tokens[:length], labels[:length]


def batches(dice: random.Random, tokens_per_batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches, int64 [rows, length]; mostly first turns, sometimes conversations of a dozen."""
    while True:
        length = dice.choices((40, 96, 480), weights=(6, 3, 1))[0]
        rows = [conversation(dice, length) for _ in range(tokens_per_batch // length)]
        yield torch.tensor([tokens for tokens, _ in rows]), torch.tensor([labels for _, labels in rows])


def exact_share(model: LlamaForCausalLM, pairs: list[tuple[int, int]]) -> float:
    """The share of answers whose every token is the likeliest one: what greedy search gets right."""
    rows = []
    for index, (a, b) in enumerate(pairs):
        asked = (SHORT + LONG)[index % (len(SHORT) + len(LONG))].format(a=a, b=b)
        prompt = [BEGIN, USER, *to_tokens(asked), END, ASSISTANT]
        rows.append((prompt, [*to_tokens(f"{a} + {b} = {a + b}"), END]))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    filled = torch.tensor([p + a + [PAD] * (longest - len(p) - len(a)) for p, a in rows])
    with torch.no_grad():
        likeliest = model(input_ids=filled).logits.argmax(-1).tolist()
    right = sum(out[len(p) - 1 : len(p) + len(a) - 1] == a for out, (p, a) in zip(likeliest, rows, strict=True))
    return float(right / len(rows))


def train(steps: int, tokens_per_batch: int) -> LlamaForCausalLM:
    """The trained model, float32 on the CPU."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=FIRST_BYTE + 256,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=BEGIN,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    )
    peak, warm_up = 2e-3, 100
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
    )
    kept = [(a, b) for a in range(10, 100) for b in range(10, 100) if held_out(a, b)]
    sample = random.Random(SEED).sample(kept, 300)  # noqa: S311  (data, not secrets)
    started = time.monotonic()
    dice = random.Random(SEED)  # noqa: S311
    for step, (tokens, labels) in enumerate(batches(dice, tokens_per_batch), start=1):
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps:
            right = exact_share(model, sample)
            spent_s = time.monotonic() - started
            print(f"sums: step {step}/{steps}  loss {loss.item():.4f}  held-out exact {right:.1%}  {spent_s:.0f} s", flush=True)
        if step == steps:
            return model
    raise AssertionError("batches() never ends")


def byte_characters() -> list[str]:
    """The printable stand-in byte-level BPE writes for each byte: itself where printable, else 256 upwards (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def write_tokenizer(folder: Path) -> None:
    """The tokenizer in Hugging Face's files: one token a byte, five control tokens."""
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *byte_characters()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[BEGIN],
        eos_token=SPECIALS[END],
        pad_token=SPECIALS[PAD],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    written = json.loads(settings.read_text())
    written |= {"tokenizer_class": "GPT2Tokenizer", "chat_template": CHAT_TEMPLATE, "add_prefix_space": False}
    settings.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the sums demo model.")
    parser.add_argument("folder", type=Path, help="where the Hugging Face checkpoint goes")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    model = train(asked.steps, asked.tokens_per_batch)
    model.save_pretrained(asked.folder)
    write_tokenizer(asked.folder)
    print(f"sums: checkpoint in {asked.folder}", flush=True)


if __name__ == "__main__":
    main()
