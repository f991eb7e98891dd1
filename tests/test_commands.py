"""The commands as a user runs them: the demo end to end, resuming, killing, refusing, bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from shapely.geometry import Polygon, mapping

from pipelines import cubes, evaluate, fuse
from pipelines.console import main
from stfgan_xr import checkpoint, open_cube, store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.fusion import Quality
from stfgan_xr.predictors.stages import Architecture, Network
from stfgan_xr.predictors.uncertainty import CAUSES, Uncertainty
from stfgan_xr.sensors import BANDS

DATES = "2020-03-01/2020-03-08"


@pytest.fixture(scope="session")
def catalog(demo_world: Path) -> str:
    """The catalog of a small demo world."""
    return str(demo_world / "catalog.toml")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; its exit code, stdout and stderr."""

    def call(*arguments: str, command: Callable[..., None] = fuse.command) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as stop:
            main(command)
        signal.signal(signal.SIGTERM, before)
        seen = capsys.readouterr()
        return int(stop.value.code or 0), seen.out, seen.err

    return call


def arguments(catalog: str, out: Path | str, method: str = "delta", dates: str = DATES) -> list[str]:
    return ["--catalog", catalog, "--dates", dates, "--method", method, "--out", str(out), "--no-report"]


def files_in(folder: Path) -> int:
    """Files below a folder that another process is writing, where rglob would stumble over what is moved away."""
    return sum(len(names) for _, _, names in os.walk(folder))


def digest(out: Path) -> list[str]:
    return [store.content_digest(out / name) for name in ("landsat.zarr", "modis.zarr", "fused.zarr")]


def test_every_requested_day_is_there_without_holes(finished: Path) -> None:
    cube = open_cube(finished / "fused.zarr")
    assert [str(t)[:10] for t in cube.time.values] == [f"2020-03-{n:02d}" for n in range(1, 9)]
    assert list(cube.data_vars)[:6] == ["blue", "green", "red", "nir", "swir1", "swir2"]
    assert cube.nir.dtype == np.float32
    assert cube.odc.geobox.crs.epsg == 32650
    bracketed = (cube.qa.values & Quality.NODATA) == 0
    assert bracketed.mean() > 0.99
    assert np.isfinite(cube.nir.values[bracketed]).all()


def test_run_json_says_what_was_asked_found_and_made(finished: Path) -> None:
    document = json.loads((finished / "run.json").read_text())
    assert document["status"] == "complete"
    assert document["request"]["method"] == "delta"
    assert document["items"]["landsat"] > 0
    assert document["cubes"]["fused.zarr"]["status"] == "complete"
    assert "torch" in document["versions"]


def test_fused_is_closer_to_the_truth_than_the_nearest_observation(finished: Path, demo_world: Path) -> None:
    from stfgan_xr import simulate
    from stfgan_xr.fusion import fuse as fuse_cubes
    from stfgan_xr.predictors.methods import make

    world = simulate.read_world(demo_world)
    days = [date(2020, 3, n) for n in range(1, 9)]
    truth = np.stack([world.reflectance(day) for day in days])
    landsat, modis = open_cube(finished / "landsat.zarr"), open_cube(finished / "modis.zarr")
    bands = ("blue", "green", "red", "nir", "swir1", "swir2")

    def error(cube: xr.Dataset) -> float:
        values = np.stack([cube[b].values for b in bands], axis=1)
        return float(np.sqrt(np.nanmean((values - truth) ** 2)))

    copied = fuse_cubes(landsat, modis, make("persistence", bands), days)
    assert error(open_cube(finished / "fused.zarr")) < error(copied.compute())


def test_without_a_method_it_is_stfgan_with_the_weights_of_the_package(
    finished: Path, catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    assert run("--catalog", catalog, "--dates", DATES, "--out", str(out))[0] == 0
    request = json.loads((out / "run.json").read_text())["request"]
    assert request["method"] == "stfgan"
    assert len(request["model"]) == 64
    assert "<title>Daily Landsat-like images, 8 days" in (out / "report.html").read_text()
    ours, anchor = open_cube(out / "fused.zarr"), open_cube(finished / "fused.zarr")
    bracketed = (ours.qa.values & Quality.NODATA) == 0
    np.testing.assert_array_equal(bracketed, (anchor.qa.values & Quality.NODATA) == 0)
    off = np.abs(ours.nir.values - anchor.nir.values)[bracketed]
    assert 0 < off.mean() < 0.02  # a correction of delta, neither nothing nor everything


def test_same_run_again_does_nothing_and_says_so(
    finished: Path, catalog: str, run: Callable[..., tuple[int, str, str]]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    code, out, _ = run(*arguments(catalog, finished))
    assert code == 0
    assert "nothing to do" in out
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()} == before


def test_deviations_are_written_scored_and_part_of_what_a_run_is(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    architecture = Architecture(BANDS, width=2)
    tensors = {n: v.numpy() for n, v in Network(architecture).state_dict().items() if v.is_floating_point()}
    known = Uncertainty(BANDS, ((1e-5,) * len(CAUSES),) * 6, ((0.8, 2.0),) * 6, (0.004,) * 6)
    config = architecture.to_config() | {"uncertainty": known.to_config()}
    model = str(checkpoint.save(tmp_path / "model", tensors, config))
    given = [*arguments(catalog, tmp_path / "run", "stfgan", "2020-03-02/2020-03-03"), "--model", model]
    assert run(*given, "--uncertainty")[0] == 0
    cube = open_cube(tmp_path / "run" / "fused.zarr")
    assert (np.isfinite(cube.std_nir.values) == np.isfinite(cube.nir.values)).all()
    scores = tmp_path / "scores.json"
    judged = [str(tmp_path / "run"), "--method", "stfgan", "--model", model, "--json", str(scores)]
    assert run(*judged, command=evaluate.command)[0] == 0
    found = json.loads(scores.read_text())["stfgan"]["classes"]["predicted"]
    assert 0 < found["coverage_68"] < found["coverage_95"] < 1
    assert found["rmse_surest"] < found["rmse_least_sure"]
    code, _, err = run(*given)
    assert code == 2
    assert f'uncertainty was "{known.digest[:20]}' in err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--method", "linear"], "method was .*delta.*, now .*linear"),
        (["--dates", "2020-02-29/2020-03-09"], "the run has 8 days, 2020-03-01 to 2020-03-08, .* not the first"),
        (["--dates", "2020-03-01/2020-03-07"], "the run has 8 days, 2020-03-01 to 2020-03-08, .* not the first"),
        (["--bracket-days", "30"], "bracket_days was 64, now 30"),
        (["--max-cloud", "50"], "max_cloud was null, now 50.0"),
        (["--bands", "red,nir"], "bands was"),
    ],
)
def test_other_parameters_on_the_same_folder_are_refused(
    finished: Path, catalog: str, run: Callable[..., tuple[int, str, str]], change: list[str], named: str
) -> None:
    code, _, err = run(*arguments(catalog, finished), *change)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert pytest.importorskip("re").search(named, err), err


def test_same_run_elsewhere_gives_the_same_content(
    finished: Path, catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    assert run(*arguments(catalog, tmp_path / "again"))[0] == 0
    assert digest(tmp_path / "again") == digest(finished)


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.15, 0.9))])
def test_kill_in_the_middle_and_resume_gives_the_same_content(
    finished: Path, catalog: str, tmp_path: Path, share: float
) -> None:
    out, whole = tmp_path / "run", files_in(finished)
    command = [sys.executable, "-m", "pipelines.fuse", *arguments(catalog, out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while files_in(out) < share * whole and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "it was not killed in the middle"
    subprocess.run(command, check=True, timeout=100, stderr=subprocess.DEVNULL)
    assert digest(out) == digest(finished)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_a_run_that_can_be_resumed(
    finished: Path, catalog: str, tmp_path: Path, number: int, code: int, word: str
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pipelines.fuse", *arguments(catalog, out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        # In the background of a shell it is ignored, also by what is started from there.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (out / "landsat.zarr").exists():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.strip().splitlines()[-1] == f"error: {word}; the same command resumes"
    subprocess.run(command, check=True, timeout=100, stderr=subprocess.DEVNULL)
    assert digest(out) == digest(finished)


def test_workers_and_smaller_blocks_give_the_content_of_one_process(
    finished: Path, catalog: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "pipelines.fuse", *arguments(catalog, out), "--workers", "2", "--tile", "64"]
    subprocess.run(command, check=True, timeout=110, stderr=subprocess.DEVNULL)
    assert digest(out) == digest(finished)


def test_an_area_of_any_shape_is_marked_and_the_rest_of_its_blocks_is_left_out(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    # A band along the diagonal, in the degrees of the demo's square.
    square = read_aoi(str(Path(catalog).parent / "aoi.geojson")).boundingbox
    band = Polygon([(square.left, square.top), (square.right, square.bottom), (square.left + 1e-3, square.top)])
    (tmp_path / "band.geojson").write_text(json.dumps(mapping(band)))
    asked = ("--aoi", str(tmp_path / "band.geojson"), "--bands", "red,nir")
    code, text, _ = run(*arguments(catalog, tmp_path / "run"), *asked, "--tile", "64")
    assert code == 0
    assert "of the pixels in the area have a value" in " ".join(text.split())
    cube, modis = open_cube(tmp_path / "run" / "fused.zarr"), open_cube(tmp_path / "run" / "modis.zarr")
    assert 0 < cube.aoi.mean() < 0.1
    records = store.records(tmp_path / "run" / "fused.zarr")
    assert 0 < sum("outside" in record for record in records) < len(records)
    assert sum(record["pixels"] for record in records) == 8 * int(cube.aoi.sum())
    valid = int(np.isfinite(cube.red.where(cube.aoi)).sum())
    assert json.loads((tmp_path / "run" / "run.json").read_text())["coverage"] == valid / (8 * int(cube.aoi.sum()))
    # Each fine pixel of the area lies in a cell of it.
    cells = cube.aoi.values.reshape(len(modis.y), 16, len(modis.x), 16).any(axis=(1, 3))
    np.testing.assert_array_equal(modis.aoi.values, cells)
    assert run(*arguments(catalog, tmp_path / "one"), *asked)[0] == 0
    one = open_cube(tmp_path / "one" / "fused.zarr")
    xr.testing.assert_equal(cube.where(cube.aoi)[["red", "nir"]].load(), one.where(one.aoi)[["red", "nir"]].load())
    assert store.content_digest(tmp_path / "run" / "landsat.zarr") == store.content_digest(
        tmp_path / "one" / "landsat.zarr"
    )


def test_a_run_without_a_value_says_so_each_time(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*arguments(catalog, tmp_path / "run", dates="2020-03-01"), "--bands", "red", "--bracket-days", "4"]
    monkeypatch.setattr(fuse, "_coverage", lambda _: 0.0)
    for _ in range(2):
        code, _, err = run(*given)
        assert code == 3
        assert "no pixel has a clear Landsat observation within 4 days and MODIS" in err


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"5", b"\xff", b"{}", b'{"request": 1}', b'{"request": {}, "dates": 1}']
)
def test_a_damaged_run_json_is_said(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]], content: bytes
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    for command in (fuse.command, cubes.command):
        code, _, err = run("--catalog", catalog, "--dates", DATES, "--out", str(tmp_path), command=command)
        assert code == 2
        assert "run.json is damaged; choose another --out or add --overwrite" in err


def test_cubes_first_and_fusion_later_is_the_same_run(
    finished: Path, catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    assert run("--catalog", catalog, "--dates", DATES, "--out", str(out), command=cubes.command)[0] == 0
    assert not (out / "fused.zarr").exists()
    code, _, err = run("--catalog", catalog, "--dates", "2020-03-02", "--out", str(out), command=cubes.command)
    assert code == 2
    assert "the run has 8 days, 2020-03-01 to 2020-03-08, which are not the first of 2020-03-02" in err
    assert run(*arguments(catalog, out))[0] == 0
    assert digest(out) == digest(finished)


def test_the_clouds_that_a_run_leaves_out_are_recorded_with_it(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out, little = tmp_path / "run", ("--dates", "2020-03-01", "--bracket-days", "10", "--bands", "red")
    asked = ("--catalog", catalog, "--out", str(out), *little)
    assert run(*asked, "--max-cloud", "2.5", command=cubes.command)[0] == 0
    assert json.loads((out / "run.json").read_text())["request"]["max_cloud"] == 2.5
    scenes = json.loads((out / "items.json").read_text())["fine"]
    assert scenes
    assert max(scene["cloud"] for scene in scenes) <= 2.5
    code, _, err = run(*asked, command=cubes.command)
    assert code == 2
    assert "max_cloud was 2.5, now null" in err


def test_items_of_another_request_are_not_used(
    catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "items.json").write_text('{"fine": [], "coarse": []}')  # left by a run that was killed before its run.json
    code, text, _ = run(*arguments(catalog, out), "--plan")
    assert code == 0
    assert "Landsat 0 days" not in text


def test_plan_writes_no_cube(catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(*arguments(catalog, tmp_path / "run"), "--plan")
    assert code == 0
    assert "fused.zarr" in out
    assert "memory" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("module", "given"),
    [
        ("fuse", ("--catalog", "demo", "--dates", "2020-03-01")),
        ("cubes", ("--catalog", "demo", "--dates", "2020-03-01")),
        ("export", ("run",)),
        ("demo", ()),
        ("train", ("--cube", "run")),
    ],
)
def test_a_folder_below_a_file_is_refused_first(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], module: str, given: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("")
    command = import_module(f"pipelines.{module}").command
    code, out, err = run(*given, "--out", str(tmp_path / "file" / "run"), command=command)
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'file'} is a file; choose a folder" in err


LINE = {"type": "LineString", "coordinates": [[114, 22], [115, 23]]}
MARS = {"type": "Polygon", "coordinates": [[[500, 22], [501, 22], [501, 23], [500, 22]]]}
ELSEWHERE = {"type": "Polygon", "coordinates": [[[10, 50], [10.01, 50], [10.01, 50.01], [10, 50]]]}


@pytest.mark.parametrize(
    ("given", "code", "named"),
    [
        (["--dates", "2020-03-08/2020-03-01"], 2, "end lies before the start"),
        (["--dates", "yesterday"], 2, "not a day"),
        (["--dates", ""], 2, "not a day"),
        (["--catalog", "nowhere"], 2, "nowhere"),
        (["--catalog", "absent.toml"], 2, "absent.toml"),
        (["--method", "magic"], 2, "stfgan, progress, persistence, linear, delta"),
        (["--uncertainty"], 2, "uncertainty of delta is not known"),
        (["--bands", "red,ultraviolet"], 2, "ultraviolet"),
        (["--crs", "EPSG:4326"], 2, "metres"),
        (["--crs", "nonsense"], 2, "not a coordinate reference system"),
        (["--aoi", "absent.geojson"], 2, "no such file"),
        (["--aoi", "garbage.geojson"], 2, "not GeoJSON"),
        (["--aoi", "empty.geojson"], 2, "empty"),
        (["--aoi", "mars.geojson"], 2, "not on Earth"),
        (["--aoi", "line.geojson"], 2, "LineString"),
        (["--aoi", "elsewhere.geojson"], 3, "no Landsat imagery"),
        (["--dates", "1999-03-01"], 3, "no Landsat imagery"),
        (["--method", "stfgan", "--model", "absent.safetensors"], 2, "absent.safetensors"),
        (["--method", "stfgan", "--model", "garbage.geojson"], 2, "garbage.geojson"),
        (["--model", "garbage.geojson"], 2, "no weights"),
        (["--cluster", "moon"], 2, "moon"),
        (["--bracket-days", "0"], 2, "bracket-days"),
        (["--max-cloud", "101"], 2, "max-cloud"),
        (["--max-cloud", "nan"], 2, "max-cloud"),
        (["--max-cloud", "0", "--bracket-days", "8"], 3, "no Landsat imagery of at most 0 % cloud"),
        (["--pairs", "absent.toml"], 2, "does not go with --pairs"),
        (["--nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_the_right_code(
    catalog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]],
    given: list[str], code: int, named: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    documents = {
        "line": LINE,
        "mars": MARS,
        "elsewhere": ELSEWHERE,
        "empty": {"type": "FeatureCollection", "features": []},
    }
    for name, document in documents.items():
        (tmp_path / f"{name}.geojson").write_text(json.dumps(document))
    (tmp_path / "garbage.geojson").write_text("not json at all")
    found, _, err = run(*arguments(catalog, tmp_path / "run"), *given)
    *before, last = err.strip().splitlines()
    assert found == code, err
    assert last.startswith("error: ")
    assert named in last
    assert all(line.strip().startswith(("searching ", "found ")) for line in before), err
    assert not (tmp_path / "run" / "fused.zarr").exists()
