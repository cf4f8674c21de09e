"""Print a results file of first_runs.py as a Markdown table: mean test Dice over draws, [each draw].

    python docs/results/table.py docs/results/hippocampus/results.jsonl
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

FIELD = "test_dice"


def cell(values: list[float]) -> str:
    each = " ".join(f"{v:.3f}".lstrip("0") for v in values)
    return f"{mean(values):.3f}".lstrip("0") + (f" [{each}]" if len(values) > 1 else " (1 draw)")


def table(rows: list[dict], field: str) -> str:
    cells: dict[tuple[str, int], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda r: r["draw"]):
        settings = ", ".join(f"{k} {v}" for k, v in row["settings"].items())
        cells[f"{row['protocol']}, {row['steps']} steps ({settings})", row["steps"]][row["n"]].append(row[field])
    numbers = sorted({n for found in cells.values() for n in found})
    lines = ["| | " + " | ".join(f"N = {n}" for n in numbers) + " |", "|---" * (len(numbers) + 1) + "|"]
    for (name, _), found in sorted(cells.items(), key=lambda item: (item[0][1], item[0][0])):
        lines.append(f"| {name} | " + " | ".join(cell(found[n]) if n in found else "-" for n in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    print(table(rows, sys.argv[2] if len(sys.argv) > 2 else FIELD))


if __name__ == "__main__":
    main()
