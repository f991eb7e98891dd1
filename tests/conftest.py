"""What every test runs under: no network but loopback, few threads, fixed examples; and the data that tests share."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from stfgan_xr import files
from tests.object_server import Objects, serving

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# GDAL's own HTTP does not go through Python's sockets: a proxy that nobody listens at stops it.
os.environ |= {
    "GDAL_HTTP_PROXY": "127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,127.0.0.2,127.0.0.3,localhost",
    "GDAL_HTTP_MAX_RETRY": "0",
}
os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "NO_COLOR": "1"}

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIACANARY", "AWS_SECRET_ACCESS_KEY": "SECRETCANARY", "AWS_SESSION_TOKEN": "TOKENCANARY",
}  # fmt: skip

_connect = socket.socket.connect


def _loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = "127.0.0.1" if address[0] == "localhost" else address[0]
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise RuntimeError(f"a test tried to reach {address[0]!r}; tests use loopback only")
    _connect(self, address)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _loopback_only)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real imagery and STAC responses, where they lie beside the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("real sample data is not beside the project (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def demo_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small demo world: 128 x 128 pixels, 40 days around the first of March 2020."""
    from stfgan_xr import simulate

    world = simulate.World(size=128, start=date(2020, 2, 10), days=40)
    return simulate.ensure_world(world, tmp_path_factory.mktemp("demo") / "world")


@pytest.fixture(scope="session")
def finished(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small demo, the first eight days of March 2020 by ``delta``, made by another process."""
    out = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, "-m", "pipelines.fuse", "--catalog", str(demo_world / "catalog.toml")]
    command += ["--dates", "2020-03-01/2020-03-08", "--method", "delta", "--out", str(out), "--no-report"]
    subprocess.run(command, check=True, timeout=100)
    return out


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """A running object store that the environment names, asked again without patience."""
    backoff = {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2}
    retry = {"max_retries": 3, "retry_timeout": timedelta(seconds=5), "backoff": backoff}
    monkeypatch.setattr(files, "RETRY", retry)
    monkeypatch.setattr(files, "CLIENT", files.CLIENT | {"timeout": timedelta(seconds=0.3)})
    with serving() as running:
        place = {"AWS_ENDPOINT_URL": running.address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        for name, value in (CREDENTIALS | place).items():
            monkeypatch.setenv(name, value)
        running.secret = CREDENTIALS["AWS_ACCESS_KEY_ID"]
        files.open_store.cache_clear()
        yield running
        files.open_store.cache_clear()


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> files.Folder:
    """An empty run folder: on a disk, and in an object store."""
    if request.param == "disk":
        return files.as_folder(tmp_path / "run")
    request.getfixturevalue("objects")
    return files.as_folder("s3://bucket/some/run")
