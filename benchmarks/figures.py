"""Figures of what may never happen: each one measured promise, kept in benchmarks/results and shown as a table."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "faults.json"
REPORT = Path(__file__).parent / "reliability.md"
COMMAND = "python -m benchmarks.faults"


@dataclass(frozen=True)
class Figure:
    """One measured promise: its row in the design's list of failures, what was tried, what came of it."""

    row: int
    what: str
    tried: int
    found: dict[str, Any]
    passed: bool


def table(found: list[Figure]) -> str:
    """Figures in eighty columns."""
    made = Table(box=None, pad_edge=False, width=80)
    for name in ("row", "tried", "what", "found", ""):
        made.add_column(name, overflow="fold", justify="right" if name in ("row", "tried") else "left")
    for figure in found:
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figure.found.items())
        made.add_row(str(figure.row), str(figure.tried), figure.what, said, "ok" if figure.passed else "FAILED")
    text = io.StringIO()
    Console(file=text, width=80).print(made)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


_TOP = """# Reliability, measured

What may never happen, tried on purpose; written by `make faults`. Each row was measured with the command that it names,
on the demo world, with servers on loopback. "Not detectable" rows are not held against the reader: none can tell wrong
bytes of the right length, or another version without an entity tag, in an image without checksums.

| row | tried | what | found | | command |
|---|---|---|---|---|---|
"""


def report(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = []
    for row in rows:
        said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row["found"].items())
        verdict = "ok" if row["passed"] else "**failed**"
        lines.append(
            f"| {row['row']} | {row['tried']} | {row['what']} | {said} | {verdict} | `{row.get('command', COMMAND)}` |"
        )
    return _TOP + "\n".join(lines) + "\n"


def keep(found: list[Figure], asked: str, to: Path) -> None:
    """Put figures in the place of earlier ones of the same."""
    old = json.loads(to.read_text(encoding="utf-8")) if to.is_file() else []
    new = {(figure.row, figure.what) for figure in found}
    rows = [row for row in old if (row["row"], row["what"]) not in new]
    rows += [vars(figure) | {"command": asked} for figure in found]
    rows.sort(key=lambda row: row["row"])
    to.parent.mkdir(exist_ok=True)
    to.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if to == RESULTS:
        REPORT.write_text(report(rows), encoding="utf-8")
