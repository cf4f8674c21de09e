"""Drawing as SVG: shapes, text, axes and legends whose extent is known, so that nothing is cut off.

Written out rather than by a plotting library: text stays text (sharp on paper, found by a search), a figure takes a
millisecond, and importing the library alone takes longer than reading ten thousand results.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FONT = "system-ui, 'DejaVu Sans', Verdana, Arial, sans-serif"
SIZE = 13  # of text, px
WIDE = 0.62  # of a character, in sizes; on the safe side for the fonts above
INK, GREY, LIGHT = "#111111", "#555555", "#dddddd"
# Okabe and Ito's colours, which all eyes tell apart, without the yellow that is faint on white; black is for scratch
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("circle", "square", "triangle", "diamond", "down", "cross", "star")
DASHES = ("", "7 3", "2 3")


@dataclass(frozen=True)
class Look:
    """How one arm looks in every figure: no two have both the same colour and the same marker."""

    colour: str
    marker: str
    dash: str = ""


def looks_of(titles: Sequence[str], plain: Sequence[str]) -> dict[str, Look]:
    """A look for every title; ``plain`` ones (the arms from scratch) are black."""
    found, counts = {}, [0, 0]
    for title in titles:
        i = counts[title in plain]
        counts[title in plain] += 1
        colours = ("#000000",) if title in plain else COLOURS
        turn, place = divmod(i, len(colours))
        marker = MARKERS[(place + 3 * turn) % len(MARKERS)]  # 3 and 7 share no factor: 42 looks before one repeats
        found[title] = Look(colours[place], marker, DASHES[turn % len(DASHES)])
    return found


def width_of(words: str, size: float = SIZE) -> float:
    """At most so wide is a text, in px."""
    return len(words) * size * WIDE


@dataclass
class Drawing:
    """A picture that grows; units px, y downwards."""

    width: float
    height: float
    alt: str
    parts: list[str] = field(default_factory=list)

    def text_at(self, x: float, y: float, words: str, anchor: str = "start", size: float = SIZE, fill: str = INK,
                turned: bool = False, bold: bool = False) -> None:  # fmt: skip
        """Text whose base line is at y; ``turned``: upwards, for the y axis."""
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:g}" fill="{fill}"'
                          f"{turn}{weight}>{html.escape(words)}</text>")  # fmt: skip

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.0, dash: str = "") -> None:
        """Through all points."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dashed}/>')

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """A filled rectangle."""
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>')

    def marker(self, look: Look, x: float, y: float, words: str = "") -> None:
        """A sign of about 10 px; ``words`` show when the mouse rests on it."""
        tip = f"<title>{html.escape(words)}</title>" if words else ""
        edges = _shape(look.marker, x, y)
        if edges is None:
            inner = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{look.colour}">{tip}</circle>'
        else:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in edges)
            inner = f'<polygon points="{path}" fill="{look.colour}">{tip}</polygon>'
        self.parts.append(inner)

    def legend(self, looks: dict[str, Look], x: float, y: float, width: float) -> float:
        """Signs and names in as many lines as they need from y downwards; where they end."""
        left = x
        for title, look in looks.items():
            wide = 34 + width_of(title) + 14
            if left > x and left + wide > x + width:
                left, y = x, y + 20
            self.line([(left, y - 4), (left + 26, y - 4)], look.colour, 1.6, look.dash)
            self.marker(look, left + 13, y - 4)
            self.text_at(left + 32, y, title)
            left += wide
        return y + 12

    @property
    def text(self) -> str:
        """The file."""
        return self.inline.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"

    @property
    def inline(self) -> str:
        """For a page of HTML."""
        size = f"{self.width:.0f} {self.height:.0f}"
        return (
            f'<svg viewBox="0 0 {size}" width="{self.width:.0f}" role="img" aria-label="{html.escape(self.alt)}" '
            f'font-family="{FONT}"><rect width="100%" height="100%" fill="#ffffff"/>{"".join(self.parts)}</svg>'
        )


def _shape(name: str, x: float, y: float) -> list[tuple[float, float]] | None:
    """Corners of a marker; None for a circle."""
    if name == "circle":
        return None
    if name == "square":
        return [(x - 4, y - 4), (x + 4, y - 4), (x + 4, y + 4), (x - 4, y + 4)]
    if name == "cross":
        steps = [(-5, -1.7), (-1.7, -1.7), (-1.7, -5), (1.7, -5), (1.7, -1.7), (5, -1.7)]
        return [(x + turn * dx, y + turn * dy) for turn in (1, -1) for dx, dy in steps]
    corners, turn = {"triangle": (3, -90), "down": (3, 90), "diamond": (4, -90), "star": (10, -90)}[name]
    radii = [6.2, 2.6] if name == "star" else [5.6]
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    return [(x + radii[i % len(radii)] * math.cos(a), y + radii[i % len(radii)] * math.sin(a))
            for i, a in enumerate(angles)]  # fmt: skip


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most so many."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * f for f in (1, 2, 2.5, 5, 10, 20) if span / (power * f) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def scores_range(values: Sequence[float]) -> tuple[float, float]:
    """A range of Dice that holds all values with some room, within 0 and 1."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = max(0.06 * (high - low), 0.01)
    return max(0.0, low - room), min(1.0, high + room)
