"""The notebooks run from top to bottom, hold no outputs, and their dashboard answers while they run."""

from __future__ import annotations

import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed ([dev])")
SMALL = {
    "quickstart": {"DAYS": "2020-03-01/2020-03-03", "METHOD": "delta"},
    "training": {"DAYS": "2020-03-01/2020-03-08", "STEPS": 2, "PATCH": 32},
    "cluster": {"DAYS": "2020-03-01/2020-03-04", "METHOD": "delta"},
}
# The part of a notebook that is run by default; all of each is under make slow.
SHORT = {"quickstart": "## Write", "training": "## Train", "cluster": "## Or ask"}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_hold_no_outputs(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def run(path: Path, catalog: Path, out: Path, monkeypatch: pytest.MonkeyPatch, until: str | None = None) -> Any:
    """Run a notebook on a small world, up to a heading if one is named; the notebook with its outputs."""
    client = pytest.importorskip("nbclient", reason="nbclient is not installed ([dev])")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("IPYTHONDIR", str(out / "ipython"))
    notebook = read(path)
    if until is not None:
        ends = [n for n, cell in enumerate(notebook.cells) if cell.source.startswith(until)]
        notebook.cells = notebook.cells[: ends[0]]
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for name, value in {**SMALL[path.stem], "CATALOG": str(catalog), "AOI": None, "OUT": str(out / "run")}.items():
        parameters.source += f"\n{name} = {value!r}"
    shown = _Shown(notebook)
    client.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(out)}},
        on_cell_executed=lambda cell, cell_index, execute_reply: shown.ran(cell),
    ).execute()  # fmt: skip
    return shown


class _Shown:
    """What the cells of a notebook have shown, and what the dashboard answered right after each."""

    def __init__(self, notebook: Any) -> None:
        self.notebook, self.link, self.answers = notebook, "", list[int]()

    def ran(self, cell: Any) -> None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/status", self.text(cell)):
            self.link = found[0]
        if self.link and "cluster.close" not in cell.source:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(self.link, timeout=60) as answer:
                self.answers.append(answer.status)

    @staticmethod
    def text(cell: Any) -> str:
        return str([output.get("data") or output.get("text") for output in cell.get("outputs", [])])

    @property
    def all(self) -> str:
        return "".join(self.text(cell) for cell in self.notebook.cells)


@pytest.fixture
def world(demo_world: Path) -> Path:
    return demo_world / "catalog.toml"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_as_far_as_they_are_quick(
    path: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run(path, world, tmp_path, monkeypatch, SHORT[path.stem])
    if path.stem == "quickstart":
        assert "Imagery, read when it is asked for" in shown.all
        assert shown.all.count("image/png") == 2
    if path.stem == "cluster":
        assert len(shown.answers) >= 3
        assert set(shown.answers) == {200}
        assert "<caption>Fusion by Delta</caption>" in shown.all


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_to_their_end(path: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run(path, world, tmp_path, monkeypatch)
    if path.stem != "training":
        assert (tmp_path / "run" / "fused.zarr" / "zarr.json").exists()
    assert "image/png" in shown.all
