"""The house stays a house: who may import whom, what importing costs, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS: dict[str, int] = {
    **dict.fromkeys(
        (
            "errors",
            "days",
            "aoi",
            "sensors",
            "grid",
            "means",
            "metrics",
            "changes",
            "files",
            "region",
            "harmonise",
            "rendering",
            "allocation",
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "scenes",
            "catalog",
            "inspection",
            "remote",
            "hdf5",
            "rasters",
            "cogs",
            "store",
            "checkpoint",
            "landscape",
            "lease",
        ),
        1,
    ),
    **dict.fromkeys(
        ("load", "predictors", "brackets", "datasets", "benchmarks", "simulate", "overviews", "stac", "lineage"), 2
    ),
    **dict.fromkeys(
        (
            "continuity",
            "fusion",
            "deployments",
            "cluster",
            "plots",
            "evaluation",
            "reporting",
            "export",
            "summary",
            "pages",
            "viewer",
        ),
        3,
    ),
    **dict.fromkeys(("samples", "learning", "gate", "state", "training"), 3),
}
# Facts may use facts: the order in which layer 0 is built.
WITHIN = {
    ("files", "errors"), ("days", "errors"), ("aoi", "errors"), ("grid", "errors"), ("grid", "aoi"),
    ("region", "grid"), ("region", "aoi"), ("harmonise", "errors"), ("harmonise", "sensors"), ("rendering", "errors"),
    ("catalog", "scenes"), ("rasters", "remote"), ("rasters", "hdf5"), ("inspection", "catalog"), ("inspection", "scenes"),
    # A bracket is described where predictors are; the series that predictors see come from brackets.
    ("brackets", "predictors"), ("cluster", "deployments"), ("evaluation", "fusion"), ("export", "fusion"), ("summary", "fusion"), ("summary", "plots"), ("pages", "summary"), ("pages", "plots"),
    ("viewer", "fusion"), ("reporting", "evaluation"), ("benchmarks", "datasets"),
    # Training in its parts.
    ("training", "learning"), ("training", "samples"), ("training", "gate"), ("learning", "samples"), ("gate", "samples"),
    ("gate", "learning"), ("state", "learning"), ("training", "state"),
}  # fmt: skip
ONLY = {
    "obstore": {"files"}, "pystac": {"catalog", "stac"}, "pystac_client": {"catalog"}, "rasterio": {"rasters", "cogs"}, "h5py": {"hdf5"},
    "zarr": {"store"},
    "av": {"export"}, "safetensors": {"checkpoint"}, "stackstac": {"load"}, "matplotlib": {"plots"}, "bokeh": {"viewer"},
    "distributed": {"cluster", "deployments"}, "dask_cuda": set(), "dask_jobqueue": set(), "dask_gateway": set(), "dask_kubernetes": set(),
    "torch": {"predictors", "cluster", "samples", "learning", "gate", "training"},
    "typer": set(), "rich": set(), "click": set(),
}  # fmt: skip


def modules(folder: str) -> Iterator[tuple[Path, str]]:
    """Python files of a package and the room each belongs to."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, path.relative_to(ROOT / folder).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names a file imports when it runs (not those for type checking only)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner) for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }  # fmt: skip
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            if node.module == "stfgan_xr":
                yield from (f"stfgan_xr.{name.name}" for name in node.names)


@pytest.mark.parametrize(("path", "room"), [m for m in modules("stfgan_xr") if m[1] not in ("__init__", "weights")])
def test_modules_import_from_lower_layers_only(path: Path, room: str) -> None:
    assert room in LAYERS, f"{room} has no layer; add it here and to ARCHITECTURE.md"
    for name in imports(path):
        assert not name.startswith("pipelines"), f"{path}: the library does not know its commands"
        if not name.startswith("stfgan_xr."):
            continue
        other = name.split(".")[1]
        if other in LAYERS and other != room:
            assert LAYERS[other] < LAYERS[room] or (room, other) in WITHIN, f"{room} imports {other}"


@pytest.mark.parametrize(("path", "room"), [*modules("stfgan_xr"), *modules("pipelines")])
def test_outside_libraries_have_one_door_each(path: Path, room: str) -> None:
    command = path.is_relative_to(ROOT / "pipelines")
    for name in imports(path):
        top = name.split(".")[0]
        if top in ONLY and not (command and top in ("typer", "rich", "click")):
            assert room in ONLY[top], f"{path} imports {top}"


def test_the_package_is_light_until_used() -> None:
    code = "import sys, stfgan_xr; print(sorted({'torch', 'rasterio', 'distributed', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_architecture_names_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for room in LAYERS:
        assert f"`{room}" in text, f"ARCHITECTURE.md does not mention {room}"


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split()]


def test_no_machine_paths_nor_registry_hosts() -> None:
    wrong = re.compile(r"(?<![\w.])/(work|root|home)/\w|pypi\.org|pythonhosted|registry\.npmjs")
    for path in tracked():
        if (
            path.suffix in (".py", ".toml", ".md", ".txt", ".yml", ".json", ".cff", "")
            and path.name != "test_layers.py"
        ):
            found = wrong.search(path.read_text(encoding="utf-8", errors="ignore")) if path.is_file() else None
            assert found is None, f"{path}: {found[0]}"
