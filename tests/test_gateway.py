"""A real dask-gateway: a cluster of its local backend gives the same content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_commands import digest
from tests.test_slurm import given

ADDRESS = os.environ.get("STFGAN_XR_GATEWAY")
pytestmark = [
    pytest.mark.skipif(not ADDRESS, reason="no dask-gateway runs (STFGAN_XR_GATEWAY, see tests/servers/gateway.sh)"),
    pytest.mark.timeout(400),
]


def test_a_cluster_of_a_gateway_gives_the_same_content(demo_world: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_gateway")
    command = [sys.executable, "-m", "pipelines.fuse"]
    subprocess.run([*command, *given(demo_world, tmp_path / "here")], check=True, timeout=200)
    done = subprocess.run(
        [*command, *given(demo_world, tmp_path / "there"), "--cluster", "gateway", "--workers", "2"],
        capture_output=True, text=True, check=False, timeout=380, env=os.environ | {"DASK_GATEWAY__ADDRESS": str(ADDRESS)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"dashboard: {ADDRESS}/clusters/" in done.stderr
    assert digest(tmp_path / "there") == digest(tmp_path / "here")
