"""Line plots as SVG, written by hand: no plotting package is needed to see a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 960, 420, 70, 20, 60, 50
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a")
_SHADES = ("#f6f8fa", "#eaeef2")
_GREY = "#57606a"
_NAMED_AT_THEIR_ENDS = 4


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of the horizontal axis with a name."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where values lie on the sheet; both axes begin at zero."""

    x_end: float
    y_end: float

    def across(self, x: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * x / self.x_end, 1)

    def up(self, y: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / self.y_end, 1)


def line_plot(title: str, x_name: str, y_name: str, lines: Sequence[Line], spans: Sequence[Span] = ()) -> str:
    """The plot as an SVG document."""
    points = [point for line in lines for point in line.points]
    frame = _Frame(max((x for x, _ in points), default=0.0) or 1.0, 1.15 * (max((y for _, y in points), default=0.0) or 1.0))
    sheet = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
    parts = [sheet, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>', _text(_LEFT, 22, title, size=15)]
    parts += [part for number, span in enumerate(spans) for part in _span(frame, span, _SHADES[number % 2])]
    parts += _axes(frame)
    parts += [_text(_WIDTH / 2, _HEIGHT - 12, x_name, anchor="middle"), _text(_LEFT, _TOP - 8, y_name, colour=_GREY)]
    named = len(lines) <= _NAMED_AT_THEIR_ENDS
    parts += [part for line, colour in zip(lines, _COLOURS, strict=False) for part in _line(frame, line, colour, named=named)]
    parts += [] if named else _legend(lines)
    return "\n".join([*parts, "</svg>", ""])


def _span(frame: _Frame, span: Span, shade: str) -> list[str]:
    start, width = frame.across(span.start), frame.across(span.end) - frame.across(span.start)
    area = f'<rect x="{start}" y="{_TOP}" width="{width:.1f}" height="{_HEIGHT - _TOP - _BOTTOM}" fill="{shade}"/>'
    return [area, _text(start + 4, _TOP + 14, span.name, colour=_GREY)]


def _axes(frame: _Frame) -> list[str]:
    parts = []
    for y in _ticks(frame.y_end):
        at = frame.up(y)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}" stroke="#d0d7de"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{y:g}", anchor="end"))
    return parts + [_text(frame.across(x), _HEIGHT - _BOTTOM + 16, f"{x:g}", anchor="middle") for x in _ticks(frame.x_end)]


def _legend(lines: Sequence[Line]) -> list[str]:
    """All names in a row above the plot: at their ends many lines would write over each other."""
    parts, at = [], float(_LEFT + 60)
    for line, colour in zip(lines, _COLOURS, strict=False):
        parts.append(f'<rect x="{at:.0f}" y="{_TOP - 17}" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(at + 14, _TOP - 8, line.name, colour=colour))
        at += 28 + 6.6 * len(line.name)
    return parts


def _line(frame: _Frame, line: Line, colour: str, *, named: bool) -> list[str]:
    path = " ".join(f"{frame.across(x)},{frame.up(y)}" for x, y in line.points)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>']
    if line.points and named:
        x, y = line.points[-1]
        parts.append(_text(frame.across(x) - 4, frame.up(y) - 8, line.name, anchor="end", colour=colour))
    return parts


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = "black", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def _ticks(end: float) -> list[float]:
    """Four to nine round values from zero to the end."""
    step = 10 ** math.floor(math.log10(end / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if end / (step * factor) < 9)
    return [step * number for number in range(int(end / step) + 1)]
