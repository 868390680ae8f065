"""Runs a text engine's generations to their end, as the stepping thread would."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import PenstockError
from worker.engine import Generation, Piece, TextEngine, TextRequest


def finish(engine: TextEngine, generations: Sequence[Generation]) -> list[list[Piece]]:
    """All in one batch, each until its own end. Raises what one of them failed with."""
    made: list[list[Piece]] = [[] for _ in generations]
    left = list(range(len(generations)))
    while left:
        answers = engine.step([generations[index] for index in left])
        assert len(answers) == len(left)
        for index, answer in zip(tuple(left), answers, strict=True):
            if isinstance(answer, PenstockError):
                raise answer
            if answer is not None:
                made[index].append(answer)
                if answer.finish is not None:
                    generations[index].close()
                    left.remove(index)
    return made


def together(engine: TextEngine, *requests: TextRequest) -> list[list[Piece]]:
    return finish(engine, [engine.begin(request) for request in requests])


def pieces(engine: TextEngine, request: TextRequest) -> list[Piece]:
    return together(engine, request)[0]


def text(made: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in made)


def token_ids(made: Sequence[Piece]) -> list[int]:
    return [token for piece in made for token in piece.token_ids]
