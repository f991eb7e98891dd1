"""Images in an object store, and runs in one: the cubes are those of files and folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import requests

import stfgan_xr
from stfgan_xr import files, store
from tests.test_catalog import demo_items
from tests.test_commands import arguments
from tests.test_commands import digest as digests_of

pytestmark = pytest.mark.skipif(
    not os.environ.get("STFGAN_XR_S3"),
    reason="STFGAN_XR_S3 names no object store; tests/servers/s3.sh start FOLDER starts one and prints its address",
)

BUCKET = "demo-world"
COLLECTIONS = ("landsat-c2-l2", "modis-43A4-061")


def put(path: str, body: bytes = b"") -> None:
    requests.put(f"{os.environ['STFGAN_XR_S3']}/{path}", data=body, timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def bucket(demo_world: Path) -> str:
    """The address of a bucket that holds the images."""
    put(BUCKET)
    for path in demo_world.rglob("*.tif"):
        put(f"{BUCKET}/{path.relative_to(demo_world)}", path.read_bytes())
    return f"s3://{BUCKET}"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sets for a store of their own."""
    address = os.environ["STFGAN_XR_S3"].removeprefix("http://")
    chosen = {"AWS_S3_ENDPOINT": address, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_REGION": "us-east-1"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    # GDAL reads the former, obstore these.
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["STFGAN_XR_S3"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")


def catalog(world: Path, folder: Path, bucket: str, hosts: str) -> Path:
    """The static catalog of the world, its items pointing into the bucket."""
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("*.tif"))
    for name in COLLECTIONS:
        for item in demo_items(world, name):
            for asset in item["assets"].values():
                asset["href"] = f"{bucket}/{name}/{Path(asset['href']).name}"
            (folder / name / f"{item['id']}.json").write_text(json.dumps(item))
    toml = folder / "catalog.toml"
    text = toml.read_text(encoding="utf-8")
    toml.write_text(text.replace('static = "catalog.json"', f'static = "catalog.json"\nhosts = ["{hosts}"]'))
    return toml


def cubes(toml: Path, out: Path | str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cubes", "--catalog", str(toml), "--dates", "2020-03-01/2020-03-08"]
    return subprocess.run(
        [*command, "--out", str(out), *options], check=False, timeout=100, capture_output=True, text=True
    )


@pytest.mark.usefixtures("environment")
def test_images_in_a_bucket_give_the_content_of_the_files(
    bucket: str, demo_world: Path, finished: Path, tmp_path: Path
) -> None:
    done = cubes(catalog(demo_world, tmp_path / "world", bucket, BUCKET), tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for name in ("landsat.zarr", "modis.zarr"):
        assert store.content_digest(tmp_path / "run" / name) == store.content_digest(finished / name)


@pytest.mark.usefixtures("environment")
def test_an_image_that_is_not_in_the_bucket_is_an_error_that_names_it(
    bucket: str, demo_world: Path, tmp_path: Path
) -> None:
    toml = catalog(demo_world, tmp_path / "world", f"{bucket}/elsewhere", BUCKET)
    done = cubes(toml, tmp_path / "run", "--bands", "red", "--bracket-days", "8")
    assert done.returncode == 4
    said = " ".join(done.stderr.split())
    assert f"{bucket}/elsewhere/landsat-c2-l2/" in said
    assert "it is not there" in said
    assert "requester-pays" not in said


def test_another_bucket_is_refused(bucket: str, demo_world: Path, tmp_path: Path) -> None:
    done = cubes(catalog(demo_world, tmp_path / "world", bucket, "other-world"), tmp_path / "run")
    assert done.returncode == 4
    assert f"{bucket} is not among the hosts" in " ".join(done.stderr.split())


# ---------------------------------------------------------------- runs in a bucket

RUNS = "runs-of-tests"
NAMES = ("landsat.zarr", "modis.zarr", "fused.zarr")
SECRET = "testing"  # what the environment's key is here


@pytest.fixture
def out(environment: None) -> Iterator[str]:
    """The address of a run folder that nobody used."""
    put(RUNS)
    files.open_store.cache_clear()
    yield f"s3://{RUNS}/{uuid4().hex}/run"
    files.open_store.cache_clear()


def digests(out: str | Path) -> list[str]:
    return [store.content_digest(files.as_folder(out) / name) for name in NAMES]


def fuse(world: Path, out: str, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return command("fuse", *arguments(str(world / "catalog.toml"), out), *options, cwd=cwd)


def command(name: str, *options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    asked = [sys.executable, "-m", f"pipelines.{name}", *options]
    search = {"PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.run(
        asked, check=False, timeout=110, capture_output=True, text=True, cwd=cwd, env=os.environ | search
    )


def test_a_run_in_a_bucket_is_the_run_of_a_folder(out: str, demo_world: Path, finished: Path, tmp_path: Path) -> None:
    done = fuse(demo_world, out, "--workers", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"stfgan_xr.open_cube('{out}/fused.zarr')" in done.stdout
    assert digests(out) == digests_of(finished)
    assert list(tmp_path.iterdir()) == []
    folder = files.as_folder(out)
    assert folder.names() == ["area.geojson", "items.json", "run.json"]
    for name in folder.names():
        assert SECRET not in (folder.read(name) or b"").decode()
    assert stfgan_xr.open_cube(f"{out}/fused.zarr").sizes["time"] == 8

    again = fuse(demo_world, out)
    assert again.returncode == 0
    assert "nothing to do" in again.stdout
    other = fuse(demo_world, out, "--bracket-days", "30")
    assert other.returncode == 2
    assert "bracket_days was 64, now 30" in other.stderr
    reported = command("summary", out)
    assert reported.returncode == 0, reported.stderr
    assert b"Daily Landsat-like images, 8 days" in (folder.read("report.html") or b"")
    assert b"AWS_" not in (folder.read("report.html") or b"")
    exported = command(
        "export", out, "--out", str(tmp_path / "films"), "--format", "gif", "--dates", "2020-03-01/2020-03-02"
    )
    assert exported.returncode == 0, exported.stderr
    scored = command("evaluate", out, "--method", "delta")
    assert scored.returncode == 0, scored.stderr
    assert "Means against the truth" in scored.stdout
    anew = fuse(demo_world, out, "--bands", "red,nir", "--overwrite")
    assert anew.returncode == 0, anew.stderr
    assert [name for name in stfgan_xr.open_cube(f"{out}/fused.zarr") if "residual" not in str(name)][:2] == [
        "red",
        "nir",
    ]


@pytest.mark.parametrize(
    "share", [0.02, pytest.param(0.15, marks=pytest.mark.slow), 0.5, pytest.param(0.9, marks=pytest.mark.slow)]
)
def test_a_run_that_was_killed_goes_on(out: str, demo_world: Path, finished: Path, share: float) -> None:
    whole = sum(path.is_file() for path in finished.rglob("*"))
    root = files.open_store(out)
    asked = [sys.executable, "-m", "pipelines.fuse", *arguments(str(demo_world / "catalog.toml"), out)]
    with subprocess.Popen(asked, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 90
        while len(root.list().collect()) < share * whole and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -9, "it was not killed in the middle"
    done = fuse(demo_world, out)
    assert done.returncode == 0, done.stderr
    assert digests(out) == digests_of(finished)


def test_cubes_in_a_bucket(out: str, demo_world: Path, finished: Path) -> None:
    done = cubes(demo_world / "catalog.toml", out)
    assert done.returncode == 0, done.stderr
    assert [store.content_digest(f"{out}/{name}") for name in NAMES[:2]] == digests_of(finished)[:2]


@pytest.mark.parametrize(
    ("place", "changed", "said"),
    [
        (None, {}, "there is no s3://no-such-bucket"),
        (RUNS, {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "the store does not answer; check AWS_ENDPOINT_URL"),
        (RUNS, {"AWS_ALLOW_HTTP": ""}, "AWS_ALLOW_HTTP=true"),
        (RUNS, {"AWS_ACCESS_KEY_ID": None}, "no credentials in the environment"),
    ],
    ids=["bucket", "endpoint", "http", "credentials"],
)
def test_what_is_wrong_with_a_bucket_is_said_in_one_line(
    out: str,
    demo_world: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str | None,
    changed: dict[str, str | None],
    said: str,
) -> None:
    for name, value in changed.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    address = f"s3://{place or 'no-such-bucket'}/run"
    for done, code in (
        (fuse(demo_world, address), 5),
        (command("evaluate", address), (2, 4)[said.startswith("the store")]),
    ):
        assert done.returncode == code, done.stderr
        (line,) = done.stderr.strip().splitlines()
        assert said in line
        assert SECRET not in line
