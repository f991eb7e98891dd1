"""What a run will need is known before it starts, and what it does when that was not enough."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import cubes, fuse, limits
from stfgan_xr import fusion, store
from stfgan_xr.errors import ResourceError
from stfgan_xr.files import LocalFolder, as_folder
from stfgan_xr.fusion import DAYS_AT_ONCE
from stfgan_xr.predictors import CoarseWindow, Prediction
from stfgan_xr.predictors.methods import make
from tests.object_server import Objects
from tests.synthetic import Scene, day
from tests.test_commands import arguments, catalog, run  # noqa: F401

DAYS = [day(n) for n in range(8, 24)]


@pytest.fixture(scope="module")
def job() -> fusion.Job:
    scene = Scene(height=256, width=256)
    return fusion.plan(scene.landsat, scene.modis, make("delta", scene.bands), DAYS, tile=256, run=16)


@pytest.mark.parametrize(
    ("share", "workers", "ways"),
    [
        (0.999, 1, ["--tile"]),
        (1.5, 2, ["--workers 1"]),
        (0.5, 2, []),
    ],
)
def test_a_job_that_does_not_fit_is_refused_with_what_would(
    job: fusion.Job, monkeypatch: pytest.MonkeyPatch, share: float, workers: int, ways: list[str]
) -> None:
    left = int(share * job.memory())
    monkeypatch.setattr(limits, "memory_left", lambda: left)
    with pytest.raises(ResourceError, match=r"a worker needs about .* of memory") as caught:
        limits.check_memory(job, workers, None, own=True)
    for way in ways:
        assert way in str(caught.value)
    if not ways:
        assert "use a machine with more" in str(caught.value)
    # What is advised fits.
    if found := re.search(r"--tile (\d+)", str(caught.value)):
        smaller = replace(job, layout=replace(job.layout, tile=int(found[1])))
        limits.check_memory(smaller, workers, None, own=True)
    if "--workers 1" in ways:
        limits.check_memory(job, 1, None, own=True)


def test_a_job_that_fits_is_not_refused(job: fusion.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "memory_left", lambda: int(2 * job.memory()) + 1)
    limits.check_memory(job, 2, None, own=True)


def test_a_disk_that_is_too_small_is_refused_and_what_is_written_already_counts(
    job: fusion.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, layouts = LocalFolder(tmp_path / "run"), {"fused.zarr": replace(job.layout, run=4)}
    layout = layouts["fused.zarr"]
    assert limits.bytes_to_write(folder, layouts) == layout.size()
    monkeypatch.setattr(LocalFolder, "free", lambda self: int(0.4 * layout.size()))
    with pytest.raises(ResourceError, match=r"are free; make room, choose another --out, or fewer --dates"):
        limits.check_disk(folder, layouts)
    for block in store.prepare(folder / "fused.zarr", layout, {})[:2]:
        store.write_block(folder / "fused.zarr", layout, block, store.fill(layout, block))
    assert limits.bytes_to_write(folder, layouts) == layout.size() / 2
    limits.check_disk(folder, layouts)


def test_free_space_is_known_of_disks_only(tmp_path: Path, objects: Objects) -> None:
    assert (LocalFolder(tmp_path / "not" / "there").free() or 0) > 0
    assert as_folder("s3://bucket/run").free() is None


def test_the_command_refuses_and_says_so_in_one_line(
    catalog: str,  # noqa: F811
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "memory_left", lambda: 1000)
    code, _, err = run(*arguments(catalog, tmp_path / "run"))
    assert code == 5
    *before, line = err.strip().splitlines()
    assert all(other.strip().startswith(("searching ", "found ")) for other in before), err
    assert line.startswith("error: ")
    assert "of memory" in line
    assert not (tmp_path / "run" / "landsat.zarr").exists()


@pytest.mark.parametrize("command", [fuse.command, cubes.command])
@pytest.mark.parametrize("what", ["disk", "workers"])
def test_a_run_that_is_refused_is_not_what_its_folder_is_for(
    catalog: str,  # noqa: F811
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., None],
    what: str,
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise ResourceError("too little")

    given = ["--catalog", catalog, "--out", str(tmp_path / "run"), "--bracket-days", "4"]
    given = ["--catalog", catalog, "--out", str(tmp_path / "run"), "--bracket-days", "4", "--bands"]
    short = {"disk": (LocalFolder, "free", lambda _: 1), "workers": (cubes, "connect", refused)}[what]
    with monkeypatch.context() as now:
        now.setattr(*short)
        assert run(*given, "red,nir", "--dates", "2020-03-01/2020-03-10", command=command)[0] == 5
    code, _, err = run(*given, "red", "--dates", "2020-03-01", command=command)
    assert code == 0, err
    before = (tmp_path / "run" / "run.json").read_bytes()
    with monkeypatch.context() as now:
        now.setattr(*short)
        assert run(*given, "red", "--dates", "2020-03-01/2020-03-10", command=command)[0] == 5
    assert (tmp_path / "run" / "run.json").read_bytes() == before


# ---------------------------------------------------------------- too little after all


class Short:
    """A method that can take some days at once, and no more."""

    def __init__(self, method: Any, most: int, error: type[BaseException], text: str) -> None:
        self.method, self.most, self.error, self.text = method, most, error, text
        self.asked: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    @property
    def bands(self) -> tuple[str, ...]:
        return tuple(self.method.bands)

    @property
    def halo(self) -> Any:
        return self.method.halo

    def prepare(self, bracket: Any) -> Any:
        return self.method.prepare(bracket)

    def predict(self, prepared: Any, coarse: CoarseWindow) -> Prediction:
        self.asked.append(len(coarse.days))
        if len(coarse.days) > self.most:
            raise self.error(self.text)
        found: Prediction = self.method.predict(prepared, coarse)
        return found


NO_MEMORY = [
    (MemoryError, ""),
    (RuntimeError, "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


def _fused(job: fusion.Job, method: Any) -> dict[str, np.ndarray]:
    block = next(iter(job.layout.blocks()))
    return dict(replace(job, predictor=method).block(block).compute(scheduler="synchronous"))


@pytest.mark.parametrize(("error", "text"), NO_MEMORY)
def test_too_little_memory_halves_the_days_and_changes_no_pixel(
    job: fusion.Job, error: type[BaseException], text: str
) -> None:
    whole = _fused(job, job.predictor)
    short = Short(job.predictor, 1, error, text)
    found = _fused(job, short)
    assert {DAYS_AT_ONCE, DAYS_AT_ONCE // 2, 1} <= set(short.asked)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize(("error", "text"), NO_MEMORY)
def test_too_little_memory_for_one_day_is_an_error(job: fusion.Job, error: type[BaseException], text: str) -> None:
    with pytest.raises(ResourceError, match="smaller --tile"):
        _fused(job, Short(job.predictor, 0, error, text))


def test_other_errors_are_not_taken_for_it(job: fusion.Job) -> None:
    with pytest.raises(RuntimeError, match="shape"):
        _fused(job, Short(job.predictor, 0, RuntimeError, "wrong shape"))
