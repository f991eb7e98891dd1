"""The demo world in an object store: catalog beside the project, images in a bucket, the same cubes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from stfgan_xr import store
from tests.test_catalog import demo_items

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


def cubes(toml: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
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
