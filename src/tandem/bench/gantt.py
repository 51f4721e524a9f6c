"""Lanes over time as a picture: SVG written by hand, so that it needs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tandem.errors import BenchError
from tandem.models.spec import ModelSpec
from tandem.pipeline.lanes import Span
from tandem.pipeline.timing import StepTime

_WIDTH, _LEFT, _RIGHT = 1100, 110, 20
_BAR, _GAP, _TITLE = 30, 8, 46
# One colour a micro-batch; attention is darker than what is not.
_COLOURS = (("#1f5fa8", "#8fbbe8"), ("#b3541e", "#f0b48a"), ("#2e7d4f", "#9fd6b5"), ("#7b3fa0", "#cfa9e6"))


@dataclass(frozen=True, slots=True)
class Bar:
    """One program of a step on its lane, in seconds. what: the kind of its blocks, or `blocks` where they are mixed."""

    lane: str
    start: float
    end: float
    what: str
    micro_batch: int


def predicted_bars(spans: Sequence[Span]) -> list[Bar]:
    return [Bar(each.task.lane, each.start, each.end, each.task.what, each.task.micro_batch) for each in spans]


def measured_bars(spec: ModelSpec, step: StepTime) -> list[Bar]:
    """Of a step that an executor noted."""
    return [
        Bar(each.device, each.start, each.end, kind_of(spec, each.blocks), each.micro_batch) for each in step.programs
    ]


def kind_of(spec: ModelSpec, blocks: Sequence[int]) -> str:
    """Of a program's blocks: attention, ffn, embed, head; `blocks` where they differ."""
    kinds = {type(spec.blocks[index]).__name__.removesuffix("Spec").lower() for index in blocks}
    return kinds.pop() if len(kinds) == 1 else "blocks"


@dataclass(frozen=True, slots=True)
class Panel:
    """bars: of one step; their times need not begin at 0."""

    title: str
    bars: Sequence[Bar]


def write_gantt(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Raises BenchError where the file cannot be written, or is not to be an SVG."""
    if path.suffix.lower() != ".svg":
        raise BenchError(f"{path} is not an SVG; name a file that ends in .svg")
    try:
        path.write_text(gantt_svg(title, panels), encoding="utf-8")
    except OSError as error:
        raise BenchError(f"{path} cannot be written: {error.strerror}") from None


def gantt_svg(title: str, panels: Sequence[Panel]) -> str:
    """A panel for each step, a row for each lane, a bar for each program; all panels in the same scale of time."""
    drawn = [panel for panel in panels if panel.bars]
    longest = max((_span(panel)[1] for panel in drawn), default=1.0) or 1.0
    parts, y = [], 34
    for panel in drawn:
        lanes = list(dict.fromkeys(bar.lane for bar in panel.bars))
        begin, seconds = _span(panel)
        parts.append(_text(10, y + 16, f"{panel.title}: {seconds * 1e3:.2f} ms", "bold"))
        y += _TITLE - 18
        for lane in lanes:
            busy = sum(bar.end - bar.start for bar in panel.bars if bar.lane == lane)
            parts.append(_text(10, y + 14, lane))
            parts.append(_text(10, y + 27, f"busy {busy / seconds:.0%}" if seconds else "", size=10))
            width = _x(seconds, longest) - _LEFT
            parts.append(f'<rect x="{_LEFT}" y="{y}" width="{width:.2f}" height="{_BAR}" fill="#f1f1f1"/>')
            parts += [_bar(bar, begin, longest, y) for bar in panel.bars if bar.lane == lane]
            y += _BAR + _GAP
        y += 12
    parts.append(_legend(y, drawn))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y + 30}" '
        f'viewBox="0 0 {_WIDTH} {y + 30}" font-family="sans-serif">'
    )
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="white"/>', _text(10, 22, title, "bold"), *parts, "</svg>\n"]
    )


def _span(panel: Panel) -> tuple[float, float]:
    """The first begin, and the seconds until the last end."""
    begin = min(bar.start for bar in panel.bars)
    return begin, max(bar.end for bar in panel.bars) - begin


def _x(seconds: float, longest: float) -> float:
    return _LEFT + seconds / longest * (_WIDTH - _LEFT - _RIGHT)


def _bar(bar: Bar, begin: float, longest: float, y: int) -> str:
    left, right = _x(bar.start - begin, longest), _x(bar.end - begin, longest)
    dark, light = _COLOURS[bar.micro_batch % len(_COLOURS)]
    colour = dark if bar.what == "attention" else light
    about = f"{bar.what}, micro-batch {bar.micro_batch}, {(bar.end - bar.start) * 1e3:.3f} ms"
    return (
        f'<rect x="{left:.2f}" y="{y}" width="{max(0.3, right - left):.2f}" height="{_BAR}" fill="{colour}" '
        f'stroke="white" stroke-width="0.3"><title>{escape(about)}</title></rect>'
    )


def _legend(y: int, panels: Sequence[Panel]) -> str:
    used = sorted({bar.micro_batch for panel in panels for bar in panel.bars})
    parts, x = [], _LEFT
    for micro in used:
        dark, light = _COLOURS[micro % len(_COLOURS)]
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{dark}"/>')
        parts.append(f'<rect x="{x + 14}" y="{y}" width="12" height="12" fill="{light}"/>')
        parts.append(_text(x + 30, y + 11, f"micro-batch {micro}: attention, other work", size=11))
        x += 240
    return "\n".join(parts)


def _text(x: int, y: int, text: str, weight: str = "normal", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
