"""A real SLURM: workers as its jobs, the job file of deploy/, and a job that is cancelled and submitted again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stfgan_xr import store
from tests.dask_processes import until
from tests.test_commands import digest, files_in

ROOT = Path(__file__).parents[1]
CONF = os.environ.get("STFGAN_XR_SLURM")
pytestmark = [
    pytest.mark.skipif(not CONF, reason="no SLURM runs (STFGAN_XR_SLURM, see tests/servers/slurm.sh)"),
    pytest.mark.timeout(400),
]
JOBQUEUE = """
jobqueue:
  slurm:
    cores: 1
    processes: 1
    memory: 3GB
    interface: lo
    log-directory: {logs}
"""


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The batch system that the environment names, with options for workers; what a test leaves queued is cancelled."""
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "jobqueue.yaml").write_text(JOBQUEUE.format(logs=tmp_path / "logs"))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for name, value in {
        "SLURM_CONF": str(CONF), "DASK_CONFIG": str(tmp_path / "dask"), "PYTHONPATH": path, "PYTHON": sys.executable,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield
    subprocess.run(["scancel", "--me"], check=False, timeout=60)


def given(demo_world: Path, out: Path) -> list[str]:
    return [
        "--catalog", str(demo_world / "catalog.toml"), "--dates", "2020-03-01/2020-03-04", "--method", "progress", "--bands",
        "red,nir", "--tile", "64", "--out", str(out), "--no-report",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def expected(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests of the run in one process."""
    out = tmp_path_factory.mktemp("expected") / "run"
    subprocess.run([sys.executable, "-m", "pipelines.fuse", *given(demo_world, out)], check=True, timeout=200)
    return digest(out)


def queued() -> str:
    return subprocess.run(["squeue", "-h", "-o", "%i %j"], capture_output=True, text=True, check=True).stdout


def submit(log: Path, *arguments: str) -> str:
    """Submit the job file of deploy/; the job's number."""
    options = ["--parsable", "--cpus-per-task=1", "--mem=3G", f"--output={log}"]
    command = ["sbatch", *options, str(ROOT / "deploy" / "fuse.sbatch"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def state(job: str) -> tuple[str, str]:
    """A job's state, and its exit code and signal."""
    said = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    found = re.search(r"JobState=(\w+)", said), re.search(r"ExitCode=(\S+)", said)
    assert found[0]
    assert found[1]
    return found[0][1], found[1][1]


def ended(job: str) -> bool:
    return state(job)[0] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def test_workers_that_are_jobs_give_the_same_content(demo_world: Path, expected: list[str], tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    command = [sys.executable, "-m", "pipelines.fuse", *given(demo_world, tmp_path / "run")]
    done = subprocess.run(
        [*command, "--cluster", "slurm", "--workers", "2"], capture_output=True, text=True, check=False, timeout=380,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "dashboard: http://127.0.0.1:" in done.stderr
    assert digest(tmp_path / "run") == expected
    logs = list((tmp_path / "logs").glob("dask-worker-*.err"))
    assert logs
    assert all("Start worker at" in log.read_text() for log in logs)
    until(lambda: not queued())  # they end with the command


def test_a_job_that_is_refused_is_said(demo_world: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    with (tmp_path / "dask" / "jobqueue.yaml").open("a") as options:
        options.write("    queue: nowhere\n")
    command = [sys.executable, "-m", "pipelines.fuse", *given(demo_world, tmp_path / "run"), "--cluster", "slurm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2
    assert re.search(r"^error: --cluster slurm: sbatch: .*partition.*jobqueue\.slurm", done.stderr, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_a_cancelled_job_goes_on_when_it_is_submitted_again(
    demo_world: Path, expected: list[str], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    first = submit(log, *given(demo_world, out))
    until(lambda: files_in(out / "landsat.zarr" / "blocks") > 2 or ended(first), 200)
    subprocess.run(["scancel", first], check=True)
    until(lambda: ended(first))
    assert state(first)[0] == "CANCELLED"
    assert "error: terminated; the same command resumes" in log.read_text()
    assert not (out / "lease.json").exists()
    # Of the block it was at some shards may be there; what has a record is kept.
    done = {int(name[1:6]) for name in store.recorded_blocks(out / "landsat.zarr")}
    shards = [path for path in (out / "landsat.zarr").rglob("c/*/*/*") if int(path.parts[-3]) in done]
    kept = {path: path.stat().st_mtime_ns for path in shards}
    assert kept
    assert not (out / "fused.zarr" / "blocks").exists()
    second = submit(log, *given(demo_world, out))
    until(lambda: ended(second), 200)
    assert state(second) == ("COMPLETED", "0:0"), log.read_text()
    assert digest(out) == expected
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_the_exit_code_of_a_job_is_that_of_the_command(tmp_path: Path) -> None:
    job = submit(tmp_path / "log", "--dates", "yesterday", "--out", str(tmp_path / "run"))
    until(lambda: ended(job))
    assert state(job) == ("FAILED", "2:0")
    assert "error: --dates" in (tmp_path / "log").read_text()
