"""The figures of a report: few-shot curves, dots by class, Dice by trainable parameters.

What has no finished job is not drawn; ``captions`` name it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_ssl.bench.cubes import ORIGINAL
from nnunet_ssl.bench.report import Arm
from nnunet_ssl.bench.statistics import Summary
from nnunet_ssl.bench.svg import GREY, LIGHT, Drawing, Look, looks_of, scores_range, ticks, width_of

WIDTH = 1100.0
MOST_PANELS = 4
Point = tuple[float, float, float]  # mean, low, high


def looks_for(arms: Sequence[Arm]) -> dict[str, Look]:
    """Title -> look, the same in all figures of a report."""
    titles = list(dict.fromkeys(arm.title for arm in arms))
    return looks_of(titles, list(dict.fromkeys(arm.title for arm in arms if arm.scratch)))


def drawn(arms: Sequence[Arm]) -> list[Arm]:
    """Those of the figures: scored on the original grid."""
    return [arm for arm in arms if arm.key[4] == ORIGINAL]


def few_shot(points: Mapping[str, Mapping[Any, Point]], numbers: Sequence[Any], looks: Mapping[str, Look],
             alt: str) -> Drawing:  # fmt: skip
    """title -> number of labelled cases -> mean and interval; a missing one breaks the line."""
    used = {title: look for title, look in looks.items() if points.get(title)}
    low, high = scores_range([v for by_number in points.values() for point in by_number.values() for v in point])
    figure = Drawing(WIDTH, 0, alt)
    left, right, top, bottom = 64.0, WIDTH - 16, 14.0, 330.0
    _scores_axis(figure, low, high, left, right, top, bottom, "Dice, 95 % interval")
    step = (right - left) / len(numbers)
    for i, number in enumerate(numbers):
        figure.text_at(left + (i + 0.5) * step, bottom + 20, str(number), "middle")
    figure.text_at((left + right) / 2, bottom + 42, "labelled cases N", "middle")
    apart = min(14.0, 0.7 * step / max(len(used), 1))
    for index, (title, look) in enumerate(used.items()):
        line: list[tuple[float, float]] = []
        for i, number in enumerate(numbers):
            found = points[title].get(number)
            if found is None:
                _drawn_line(figure, line, look)
                line = []
                continue
            x = left + (i + 0.5) * step + apart * (index - (len(used) - 1) / 2)
            mean, a, b = (_place(v, low, high, bottom, top) for v in found)
            figure.line([(x, a), (x, b)], look.colour, 1.4)
            figure.marker(look, x, mean, f"{title}, N {number}: {found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})")
            line.append((x, mean))
        _drawn_line(figure, line, look)
    figure.height = figure.legend(used, left, bottom + 72, right - left)
    return figure


def _drawn_line(figure: Drawing, points: Sequence[tuple[float, float]], look: Look) -> None:
    if len(points) > 1:
        figure.line(points, look.colour, 1.4, look.dash)


def by_number(arms: Sequence[Arm]) -> dict[str, dict[Any, Point]]:
    """Of arms with results: what ``few_shot`` draws."""
    found: dict[str, dict[Any, Point]] = {}
    for arm in arms:
        if summary := arm.summaries.get("dice"):
            found.setdefault(arm.title, {})[arm.key[1]] = _point(summary)
    return found


def panels_of(arms: Sequence[Arm]) -> list[Any]:
    """The numbers of labelled cases that get a panel: all, or the first, the last and some between."""
    numbers = list(dict.fromkeys(arm.key[1] for arm in arms if arm.rows))
    if len(numbers) <= MOST_PANELS:
        return numbers
    return [numbers[round(i * (len(numbers) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]


def dots(arms: Sequence[Arm], looks: Mapping[str, Look], alt: str) -> Drawing:
    """A panel a number of labelled cases, a line of dots a class."""
    numbers, classes = panels_of(arms), list(dict.fromkeys(t.name for arm in arms for t in arm.targets))
    used = {title: look for title, look in looks.items() if any(a.title == title and a.rows for a in arms)}
    points = {(arm.key[1], target.name, arm.title): _point(summary) for arm in arms for target in arm.targets
              if (summary := target.summaries["dice"]) and arm.key[1] in numbers}  # fmt: skip
    low, high = scores_range([value for point in points.values() for value in point])
    tall = max(26.0, 10.0 * len(used) + 8)
    left = 24 + max(width_of(name) for name in classes)
    top, bottom = 34.0, 34.0 + tall * len(classes)
    figure = Drawing(WIDTH, 0, alt)
    for row, name in enumerate(classes):
        if row % 2 == 0:
            figure.box(left, top + row * tall, WIDTH - 16 - left, tall, "#f3f3f3")
        figure.text_at(left - 10, top + (row + 0.5) * tall + 5, name, "end")
    for number, (a, b) in zip(numbers, _columns(left, WIDTH - 16, len(numbers)), strict=True):
        figure.text_at((a + b) / 2, 20, f"N = {number}", "middle", bold=True)
        for value in ticks(low, high, 5):
            x = _place(value, low, high, a, b)
            figure.line([(x, top), (x, bottom)], LIGHT)
            figure.text_at(x, bottom + 18, f"{value:g}", "middle", 12)
        for row, name in enumerate(classes):
            for index, (title, look) in enumerate(used.items()):
                if found := points.get((number, name, title)):
                    y = top + (row + 0.5) * tall + 10 * (index - (len(used) - 1) / 2)
                    mean, p, q = (_place(v, low, high, a, b) for v in found)
                    figure.line([(p, y), (q, y)], look.colour, 1.4)
                    figure.marker(look, mean, y, f"{name}, {title}, N {number}: {found[0]:.3f}")
    figure.text_at((left + WIDTH - 16) / 2, bottom + 40, "Dice by class, 95 % interval", "middle")
    figure.height = figure.legend(used, 16, bottom + 70, WIDTH - 32)
    return figure


def parameters(arms: Sequence[Arm], looks: Mapping[str, Look], alt: str) -> Drawing:
    """A panel a number of labelled cases: Dice against the parameters that learn, on a logarithmic axis."""
    numbers = panels_of(arms)
    found = [(arm, arm.parameters, _point(summary)) for arm in arms
             if (summary := arm.summaries.get("dice")) and arm.parameters and arm.key[1] in numbers]  # fmt: skip
    low, high = scores_range([value for _, _, point in found for value in point])
    exponents = [math.log10(count) for _, count, _ in found] or [0.0]
    first, last = math.floor(min(exponents) - 0.1), math.ceil(max(exponents) + 0.1)
    figure = Drawing(WIDTH, 0, alt)
    top, bottom, left = 34.0, 290.0, 64.0
    for i, (number, (a, b)) in enumerate(zip(numbers, _columns(left, WIDTH - 16, len(numbers)), strict=True)):
        figure.text_at((a + b) / 2, 20, f"N = {number}", "middle", bold=True)
        _scores_axis(figure, low, high, a, b, top, bottom, "Dice, 95 % interval" if i == 0 else "")
        for power in range(first, last + 1):
            x = _place(power, first, last, a + 14, b - 14)
            figure.line([(x, top), (x, bottom)], LIGHT)
            figure.text_at(x, bottom + 18, _count(power), "middle", 12)
        own = [entry for entry in found if entry[0].key[1] == number]
        for index, (arm, count, point) in enumerate(own):
            # side by side where several arms train as many parameters
            x = _place(math.log10(count), first, last, a + 14, b - 14) + 3 * (index - (len(own) - 1) / 2)
            mean, p, q = (_place(v, low, high, bottom, top) for v in point)
            figure.line([(x, p), (x, q)], looks[arm.title].colour, 1.4)
            figure.marker(looks[arm.title], x, mean, f"{arm.title}: {count:,} parameters, Dice {point[0]:.3f}")
    figure.text_at((left + WIDTH - 16) / 2, bottom + 40, "parameters that learn", "middle")
    used = {title: look for title, look in looks.items() if any(arm.title == title for arm, _, _ in found)}
    figure.height = figure.legend(used, 16, bottom + 70, WIDTH - 32)
    return figure


def _scores_axis(figure: Drawing, low: float, high: float, left: float, right: float, top: float, bottom: float,
                 words: str) -> None:  # fmt: skip
    for value in ticks(low, high):
        y = _place(value, low, high, bottom, top)
        figure.line([(left, y), (right, y)], LIGHT)
        if words:
            figure.text_at(left - 8, y + 4, f"{value:g}", "end", 12)
    figure.line([(left, top), (left, bottom), (right, bottom)], GREY)
    if words:
        figure.text_at(18, (top + bottom) / 2, words, "middle", turned=True)


def _columns(left: float, right: float, number: int) -> list[tuple[float, float]]:
    """Where the panels begin and end."""
    gap = 22.0
    wide = (right - left - gap * (number - 1)) / max(number, 1)
    return [(left + i * (wide + gap), left + i * (wide + gap) + wide) for i in range(number)]


def _place(value: float, low: float, high: float, at_low: float, at_high: float) -> float:
    return at_low + (min(max(value, low), high) - low) / max(high - low, 1e-9) * (at_high - at_low)


def _point(summary: Summary) -> Point:
    return summary.mean, summary.low, summary.high


def _count(power: int) -> str:
    """10^power as people write numbers of parameters."""
    for size, unit in ((9, "G"), (6, "M"), (3, "k")):
        if power >= size:
            return f"{10 ** (power - size)} {unit}"
    return str(10**power)
