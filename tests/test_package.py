"""The wheel holds all that the package needs, and works without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from stfgan_xr.catalog import known_catalogs

ROOT = Path(__file__).parents[1]
PACKAGES = ("catalogs", "pipelines", "stfgan_xr")


def run(*arguments: str, cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        arguments, cwd=cwd, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=110
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that nothing is left beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source), cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A folder that holds the installed wheel only."""
    target = wheel.parent / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", str(target), str(wheel), cwd=wheel.parent)
    return target


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_of_the_source(wheel: Path) -> None:
    modules = {path.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert modules <= names(wheel)
    assert "pipelines/fuse.py" in modules


def test_the_wheel_holds_catalogs_weights_and_the_type_marker(wheel: Path) -> None:
    weights = {p for suffix in ("safetensors", "json", "md") for p in (ROOT / "stfgan_xr/weights").glob(f"*.{suffix}")}
    data = {path.relative_to(ROOT).as_posix() for path in {*(ROOT / "catalogs").glob("*.toml"), *weights}}
    assert {"catalogs/demo.toml", "catalogs/planetary-computer.toml"} <= data
    web = {"stfgan_xr/web/report.css", "stfgan_xr/web/report.js"}
    assert data | web | {"stfgan_xr/py.typed", "stfgan_xr/weights/__init__.py"} <= names(wheel)


def test_the_wheel_holds_nothing_but_the_packages(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def isolated(site: Path, folder: Path, *arguments: str) -> str:
    return run(sys.executable, *arguments, cwd=folder, PYTHONPATH=str(site), COLUMNS="100")


def test_the_installed_package_is_not_the_source_tree(site: Path, tmp_path: Path) -> None:
    code = "import catalogs, pipelines, stfgan_xr; print(catalogs.__file__, pipelines.__file__, stfgan_xr.__file__, sep='\\n')"
    found = [Path(line) for line in isolated(site, tmp_path, "-c", code).splitlines()]
    assert len(found) == 3
    assert all(path.is_relative_to(site) for path in found), found


@pytest.mark.parametrize("command", ["fuse", "demo"])
def test_the_installed_commands_show_their_help(site: Path, tmp_path: Path, command: str) -> None:
    if f"{command}.py" not in {path.name for path in (site / "pipelines").iterdir()}:
        pytest.skip(f"there is no command {command}")
    assert "--out" in isolated(site, tmp_path, "-m", f"pipelines.{command}", "--help")


def test_the_installed_package_opens_every_catalog(site: Path, tmp_path: Path) -> None:
    code = "from stfgan_xr import catalog; print(*(catalog.open_catalog(n).name for n in catalog.known_catalogs()))"
    assert isolated(site, tmp_path, "-c", code).split() == list(known_catalogs())


def test_the_installed_commands_leave_nothing_in_the_folder_they_run_in(site: Path, tmp_path: Path) -> None:
    isolated(site, tmp_path, "-c", "from stfgan_xr.catalog import open_catalog; open_catalog('demo')")
    assert list(tmp_path.iterdir()) == []
