"""The conda environment and the constraints say what pyproject.toml says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def declared() -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}


def extra(name: str) -> dict[str, Requirement]:
    return {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"][name])}


def conda() -> dict[str, SpecifierSet]:
    lines = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9_-]+)(.*)", line)
        assert match is not None, line
        if match[1] != "cuda-version":
            found[canonicalize_name(match[1])] = SpecifierSet(match[2])
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("#")[0].strip() for line in lines]
    return {canonicalize_name(name): version for name, version in (pin.split("==") for pin in pins if pin)}


def expected_of_conda() -> dict[str, SpecifierSet]:
    found = {name: requirement.specifier for name, requirement in declared().items()}
    # conda's dask has no extras: its parts are packages; and the build of torch with CUDA is pytorch-gpu.
    found["distributed"] = found["dask"]
    found["pytorch-gpu"] = found.pop("torch")
    found["dask-cuda"] = extra("cuda")["dask-cuda"].specifier
    found["python"] = SpecifierSet(PROJECT["requires-python"])
    found["pip"] = SpecifierSet()
    return found


def test_the_conda_environment_agrees_with_the_project() -> None:
    assert conda() == expected_of_conda()


def test_the_extras_of_dask_are_those_that_conda_names() -> None:
    assert declared()["dask"].extras == {"array", "distributed", "diagnostics"}


def test_the_conda_environment_lists_each_package_once() -> None:
    lines = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert len(conda()) == len(lines) - 1  # without cuda-version
    assert "cuda-version=13.*" in lines


def test_the_cuda_of_conda_is_that_of_the_extra() -> None:
    assert extra("cuda")["dask-cuda"].extras == {"cu13"}


@pytest.mark.parametrize("group", ["dependencies", "dev", "docs", "cluster", "film", "notebook"])
def test_the_constraints_pin_every_dependency_within_its_range(group: str) -> None:
    wanted = declared() if group == "dependencies" else extra(group)
    pins = constraints()
    wanted.pop("setuptools", None)  # builds the package, and is no part of what is tested
    for name, requirement in wanted.items():
        assert name in pins, f"{name} is not pinned"
        assert requirement.specifier.contains(pins[name]), f"{requirement} does not hold {pins[name]}"


def test_the_constraints_pin_what_dasks_extras_bring() -> None:
    pins = constraints()
    assert pins["distributed"] == pins["dask"]
    assert {"bokeh", "jinja2", "numpy"} <= set(pins)


def test_torch_is_pinned_to_the_tested_version() -> None:
    assert constraints()["torch"] == "2.13.0"


def test_the_constraints_hold_no_cuda_packages() -> None:
    assert not [
        name for name in constraints() if name.startswith(("nvidia", "cuda", "triton", "cupy")) or "-cu1" in name
    ]


def test_every_constraint_is_one_exact_version() -> None:
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+", line), line
