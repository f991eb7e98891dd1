# ruff: noqa: F811
"""The same command every night: the days that come, what is made again, and what a night says."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import nights
from pipelines import fuse, imagery, updates, verify
from stfgan_xr import brackets, errors, lineage, store
from stfgan_xr.days import to_number
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.fusion import NO_AGE, Quality
from stfgan_xr.grid import Halo, Window
from stfgan_xr.sensors import Observation
from tests.synthetic import Scene, day, grid
from tests.test_commands import arguments, catalog, run  # noqa: F401

ROOT = Path(__file__).parents[1]
START = to_number(day(0))
Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("count", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_after_each_night_the_cubes_are_those_of_a_run_from_nothing(tmp_path: Path, count: int) -> None:
    found = nights.count(count, 64, 1, tmp_path)
    assert [night["differences"] for night in found["nights"]] == [0] * count
    assert [night["damages"] for night in found["nights"]] == [0] * count
    sums = found["sums"]
    assert sums["missed"] == 0
    assert sums["killed"] >= 1
    assert sums["written"] < sums["blocks"]
    assert sums["needless"] <= sums["had_to"] // 10
    assert max(night["provisional"] for night in found["nights"]) > 0
    assert "| yes |" in nights.page(found)


def test_days_are_added_to_a_finished_run_and_nothing_else_is_touched(
    finished: Path, catalog: str, tmp_path: Path, run: Command
) -> None:  # fmt: skip
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "landsat.zarr").rglob("c/*/*/*")}
    code, said, err = run(*arguments(catalog, out, dates="2020-03-01/2020-03-10"), "--log", "json")
    assert code == 0, err
    lines = [json.loads(line) for line in (said + err).splitlines()]
    assert all({"time", "level", "message"} <= line.keys() for line in lines)
    (night,) = [line["night"] for line in lines if "night" in line]
    assert night["fused.zarr"]["added"] == ["2020-03-09", "2020-03-10"]
    assert night["fused.zarr"]["why"] == {"new days": night["fused.zarr"]["blocks"]}
    assert night == json.loads((out / "run.json").read_text())["nights"][-1]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    fresh = tmp_path / "fresh"
    assert run(*arguments(catalog, fresh, dates="2020-03-01/2020-03-10"))[0] == 0
    assert nights.differences(out, fresh) == 0
    assert run(str(out), command=verify.command)[0] == 0
    code, said, _ = run(*arguments(catalog, out, dates="2020-03-01/2020-03-10"))
    assert code == 0
    assert "nothing to do" in said


def test_a_night_without_news_changes_no_cube(
    finished: Path, catalog: str, tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    monkeypatch.setattr(imagery, "_newest", lambda _: date(2020, 3, 8))
    files = [path for name in fuse.CUBES for path in (out / name).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    code, said, err = run(*arguments(catalog, out, dates="P3D"))
    assert code == 0, err
    assert "days: as before\nLandsat: as before\nMODIS: as before\nfused: 0 of" in said
    assert {path: path.stat().st_mtime_ns for path in files} == before


def test_the_newest_day_of_a_static_catalog_is_that_of_its_composites(catalog: str, tmp_path: Path) -> None:
    request = imagery.make_request("P5D", None, catalog, None, None, "red", None, 8)
    days = imagery.with_days(request, {}).days
    assert (days[0], days[-1]) == (date(2020, 3, 16), date(2020, 3, 20))
    later = imagery.with_days(request, {"dates": ["2020-03-01", "2020-03-02"]}).days
    assert (later[0], later[-1], len(later)) == (date(2020, 3, 1), date(2020, 3, 20), 20)
    with pytest.raises(errors.InputError, match="not every day"):
        imagery.with_days(request, {"dates": ["2020-03-01", "2020-03-09"]})


@pytest.mark.parametrize("more", [["--adapt"], ["--guard"]])
def test_weights_that_depend_on_the_run_are_refused(
    catalog: str, tmp_path: Path, run: Command, more: list[str]
) -> None:
    code, _, err = run("--catalog", catalog, "--dates", "P3D", "--out", str(tmp_path / "run"), *more)
    assert code == 2
    assert "--adapt and --guard choose weights" in err


@pytest.mark.parametrize("dates", ["P0D", "P99999D"])
def test_periods_that_are_none_are_refused(catalog: str, tmp_path: Path, run: Command, dates: str) -> None:
    code, _, err = run(*arguments(catalog, tmp_path / "run", dates=dates))
    assert code == 2
    assert "number of days" in err


def test_an_unknown_kind_of_log_is_refused(catalog: str, tmp_path: Path, run: Command) -> None:
    code, _, err = run(*arguments(catalog, tmp_path / "run"), "--log", "xml")
    assert code == 2
    assert "choose text or json" in err


# ---------------------------------------------------------------- a cube whose days come in any order


def _cube(path: store.Where, days: list[int], void: tuple[int, ...] = (), sealed: bool = True) -> None:
    variables = store.observation_variables(("red",))
    layout = store.Layout(grid(32, 32), tuple(day(n) for n in days), variables, 32, 1)
    for block in store.prepare(path, replace(layout, void=tuple(day(n) for n in void)), {}):
        number = days[block.first]
        values = np.full((1, 32, 32), number, "int16")
        store.write_block(path, layout, block, {"red": values, "qa": values.astype("uint16")})
    if sealed:
        store.seal(path)


def test_late_days_are_read_in_order_and_void_ones_not_at_all(folder: Folder) -> None:
    _cube(folder / "a.zarr", [1, 5, 9])
    _cube(folder / "a.zarr", [1, 5, 9, 3, 12], void=(5,))
    _cube(folder / "b.zarr", [1, 3, 9, 12])
    found = store.open_counts(folder / "a.zarr")
    assert [str(moment)[:10] for moment in found.time.values] == [day(n).isoformat() for n in (1, 3, 9, 12)]
    assert found.red[:, 0, 0].values.tolist() == [1, 3, 9, 12]
    assert found.red.isel(time=slice(1, 3), x=5, y=5).values.tolist() == [3, 9]
    assert store.content_digest(folder / "a.zarr") == store.content_digest(folder / "b.zarr")
    assert store.check(folder / "a.zarr") == []


def test_a_reader_that_opens_a_cube_as_it_begins_to_grow_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cube(tmp_path / "a.zarr", [1, 5])
    real = store.cubes._coordinates

    def slow(*arguments: Any) -> Any:
        variables = store.observation_variables(("red",))
        days = tuple(day(n) for n in (1, 5, 9))
        store.prepare(tmp_path / "a.zarr", store.Layout(grid(32, 32), days, variables, 32, 1), {})
        return real(*arguments)

    monkeypatch.setattr(store.cubes, "_coordinates", slow)
    with pytest.raises(errors.IncompleteError, match="unfinished: 1 blocks are missing"):
        store.open_cube(tmp_path / "a.zarr")


def test_a_reader_that_opens_a_cube_as_it_is_sealed_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cube(tmp_path / "a.zarr", [1, 5], sealed=False)
    real, states = store.cubes._coordinates, []

    def slow(*arguments: Any) -> Any:
        states.append(store.seal(tmp_path / "a.zarr")["status"])
        return real(*arguments)

    monkeypatch.setattr(store.cubes, "_coordinates", slow)
    found = store.open_cube(tmp_path / "a.zarr", allow_incomplete=True)
    assert found.sizes["time"] == 2
    assert len(states) == 2  # once as it was, once as it is


def test_a_cube_that_never_rests_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cube(tmp_path / "a.zarr", [1, 5])
    real, states = store.cubes.state_of, iter(range(100))
    monkeypatch.setattr(store.cubes, "state_of", lambda folder: {**real(folder), "turn": next(states)})
    with pytest.raises(errors.IncompleteError, match="again and again"):
        store.open_cube(tmp_path / "a.zarr")


# ---------------------------------------------------------------- what a block depends on


def _lineage(scene: Scene, days: list[int], window: Window, without: set[int] = frozenset()) -> lineage.Lineage:  # type: ignore[assignment]
    kept = [START + n for n in scene.acquired if n not in without]
    found = lineage.Lineage(brackets.FILL_DAYS)
    landsat, modis = brackets.series(scene.landsat).select(kept), brackets.series(scene.modis)
    numbers = [START + n for n in days]
    for interval in brackets.intervals(landsat, modis, window, numbers, Halo(fine=8, coarse=1), scene.ratio, 20):
        found.add(interval)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 5), st.integers(1, 36), st.sampled_from([0.0, 0.3, 0.7]))
def test_an_acquisition_outside_of_the_reach_of_a_block_changes_nothing(
    seed: int, left_out: int, first: int, cloud: float
) -> None:
    scene, window = Scene(height=64, width=32, cloud=cloud, seed=seed), Window(16, 48, 0, 32)
    acquired = scene.acquired[left_out]
    before = _lineage(scene, [first, first + 1], window, {acquired})
    after = _lineage(scene, [first, first + 1], window)
    assert before.landsat is not None
    if not before.landsat[0] <= START + acquired <= before.landsat[1]:
        assert before.digest() == after.digest()
        assert before.notes() == after.notes()


def test_an_acquisition_between_those_of_a_block_is_seen() -> None:
    scene, window = Scene(height=64, width=32, cloud=0), Window(16, 48, 0, 32)
    before, after = _lineage(scene, [20, 21], window, {19}), _lineage(scene, [20, 21], window)
    assert before.landsat == (START + 12, START + 27)
    assert after.landsat == (START + 19, START + 27)
    assert before.digest() != after.digest()
    assert after.digest("one fit") != after.digest("another")


@pytest.mark.parametrize("value", [(np.zeros(9),), [1, 2], {"a": 1}, object(), Path("a")])
def test_what_a_digest_would_not_hold_whole_is_refused(value: Any) -> None:
    # Of long arrays in a tuple the text of them holds just the ends.
    with pytest.raises(TypeError, match=f"{type(value).__name__} in a digest"):
        lineage._feed(hashlib.sha256(), value)


def test_that_a_pixel_was_resampled_counts_for_the_blocks_that_see_it_and_no_others() -> None:
    def digest(rows: slice) -> str:
        scene = Scene(height=96, width=32, cloud=0)
        scene.landsat.qa.values[:, rows] |= np.uint16(Observation.RESAMPLED)
        return _lineage(scene, [20, 21], Window(0, 16, 0, 32)).digest()

    unmarked = digest(slice(0, 0))
    assert digest(slice(15, 16)) != unmarked
    assert digest(slice(23, 24)) != unmarked  # in its halo
    assert digest(slice(24, 96)) == unmarked


def test_what_changes_and_changes_back_is_a_change(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    folder, result = as_folder(out), as_folder(out / "fused.zarr")
    assert updates.note_inputs(folder, result) == []
    (record, *_) = [r for r in store.records(out / "modis.zarr") if r["clear"]]
    store.note(out / "modis.zarr", record | {"sha256": "another"})
    (change,) = updates.note_inputs(folder, result) or []
    store.note(out / "modis.zarr", record)
    assert updates.note_inputs(folder, result) == [change]
    updates.forget_versions(folder, result)
    assert updates.note_inputs(folder, result) == []


def test_a_damaged_record_is_said_before_any_change_is_forgotten(tmp_path: Path, run: Command) -> None:
    feed, out = nights.make_feed(tmp_path / "world", 4, 64, 1), tmp_path / "run"
    given = nights._arguments(feed, f"P{nights.FIRST}D")
    feed.deliver(0)
    assert run(*given, "--out", str(out))[0] == 0
    feed.deliver(1)  # a Landsat image becomes another
    damaged = min((out / "fused.zarr/blocks").glob("t*"))
    damaged.write_bytes(b"{")
    code, _, err = run(*given, "--out", str(out))
    assert code == 6
    assert f"fused.zarr is damaged: blocks/{damaged.name} is no record; python -m pipelines.verify RUN --repair" in err
    code, _, err = run(str(out), "--repair", command=verify.command)
    assert code == 6
    assert "run its own command again" in err
    code, _, err = run(*given, "--out", str(out))
    assert code == 0, err
    first = feed.world.start
    fresh = nights._arguments(feed, f"{first}/{feed.newest(1)}")
    assert run(*fresh, "--out", str(tmp_path / "fresh"))[0] == 0
    assert nights.differences(out, tmp_path / "fresh") == 0


def test_a_damaged_record_of_the_imagery_does_not_hide_what_changed(
    finished: Path, catalog: str, tmp_path: Path, run: Command
) -> None:  # fmt: skip
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    next((out / "landsat.zarr/blocks").glob("t*")).write_bytes(b"{")
    code, _, err = run(*arguments(catalog, out, dates="P3D"))
    assert code == 6
    assert "landsat.zarr is damaged" in err


def test_provisional_days_are_those_that_an_acquisition_may_still_reach(finished: Path) -> None:
    cube = store.open_counts(finished / "fused.zarr")
    open_ = ((cube.qa & int(Quality.EXTRAPOLATED)) != 0) & (cube.days_after == NO_AGE)
    # The demo's imagery ends long after the run's days, but within the days that a bracket may reach.
    expected = (open_ & cube.aoi).any(("y", "x")).values
    np.testing.assert_array_equal(cube.provisional.values, expected)


def test_a_block_without_a_clear_pixel_counts_for_nobody(tmp_path: Path) -> None:
    scene = Scene(height=64, width=64, acquired=(3, 11))
    cloudy = scene.landsat.copy(deep=True)
    cloudy["qa"][1] = int(Observation.CLOUD)
    layout = store.dataset_layout(cloudy, scene.fine, scene.bands, tile=64, run=1)
    pending = store.prepare(tmp_path / "landsat.zarr", layout, {})
    records = [task.compute() for task in store.write_tasks(cloudy.chunk(), tmp_path / "landsat.zarr", layout, pending)]
    assert [record["clear"] > 0 for record in records] == [True, False]


# ---------------------------------------------------------------- ready files


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not here to check its units")
    for name in ("service", "timer"):
        text = (ROOT / f"deploy/stfgan-xr.{name}").read_text()
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE)
        (tmp_path / f"stfgan-xr.{name}").write_text(re.sub(r"^User=.*$", "User=root", text, flags=re.MULTILINE))
    units = [str(tmp_path / f"stfgan-xr.{name}") for name in ("service", "timer")]
    found = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert not [line for line in found.stderr.splitlines() if "stfgan-xr" in line]
