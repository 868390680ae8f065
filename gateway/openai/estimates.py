"""What a request is thought to come to in tokens, before anybody has counted. Pure.

A token is about four characters of English (OpenAI's rule of thumb); what it came to is counted afterwards, and in full.
"""

from __future__ import annotations

from gateway.openai.types import Prompt, TextAsked, VectorsAsked

_CHARACTERS = 4


def prompt_tokens_of(asked: TextAsked) -> int:
    """Of all its prompts, each counted once."""
    return sum(_characters(prompt) for prompt in asked.prompts) // _CHARACTERS


def text_tokens(asked: TextAsked) -> int:
    """With the most that may be answered, where the caller says how much that is."""
    return prompt_tokens_of(asked) + asked.max_tokens * asked.choices


def vectors_tokens(asked: VectorsAsked) -> int:
    return sum(map(len, asked.texts)) // _CHARACTERS + sum(map(len, asked.token_ids))


def _characters(prompt: Prompt) -> int:
    return len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
