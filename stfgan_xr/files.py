"""Small files written in one step."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file in one step, with sorted keys: the same document gives the same bytes."""
    write_text(path, json.dumps(document, indent=1, sort_keys=True) + "\n")
