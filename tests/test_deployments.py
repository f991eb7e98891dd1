"""Workers that others started, that share no working folder with the command, that die and come, or do not fit."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from pipelines import cubes, verify
from stfgan_xr import checkpoint, cluster, deployments, errors, files
from stfgan_xr.predictors.methods import make
from tests.dask_processes import OTHER_NUMPY, Joined, joined, until
from tests.test_commands import arguments, catalog, digest, files_in, run  # noqa: F401

# Processes start one after the other here: generous, for machines that do other things as well.
pytestmark = pytest.mark.timeout(300)
DATES = "2020-03-01/2020-03-04"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, demo_world: Path) -> tuple[Path, Path]:
    """A folder that all see, with the imagery; and one that the command alone sees, with a catalog and weights."""
    shared, own = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("own")
    text = (demo_world / "catalog.toml").read_text()
    for name in ("catalog.json", "aoi.geojson", "world.json"):
        text = text.replace(f'"{name}"', f'"{demo_world / name}"')
    (own / "mine.toml").write_text(text)
    for name in ("stfgan.safetensors", "stfgan.json"):
        (own / name).write_bytes((checkpoint.shipped().with_name(name)).read_bytes())
    return shared, own


def command(out: str, *more: str) -> list[str]:
    given = ["--catalog", "mine.toml", "--dates", DATES, "--model", "stfgan.safetensors", "--tile", "64", "--bands"]
    return [sys.executable, "-m", "pipelines.fuse", *given, "red,nir", "--out", out, "--no-report", *more]


@pytest.fixture(scope="module")
def expected(places: tuple[Path, Path]) -> list[str]:
    """Digests of the run in one process."""
    shared, own = places
    subprocess.run(command(f"{shared}/expected"), cwd=own, env=_environment(), check=True, timeout=200)
    return digest(shared / "expected")


def _environment() -> dict[str, str]:
    root = str(Path(__file__).parents[1])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def two(places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    """A scheduler and two workers that were started by hand, which do not see the command's own folder."""
    monkeypatch.setenv("PYTHONPATH", _environment()["PYTHONPATH"])
    with joined(tmp_path / "dask") as running:
        for number in (1, 2):
            running.worker(number, places[1])
        until(running.has(2))
        yield running


def executed(address: str) -> dict[str, int]:
    """Tasks that each worker has finished, by its name."""
    from distributed import Client

    def count(dask_worker: Any) -> tuple[str, int]:
        return str(dask_worker.name), int(dask_worker.state.executed_count)

    with Client(address, set_as_default=False) as client:
        return dict(client.run(count).values())


def test_workers_started_by_hand_give_the_same_content(
    places: tuple[Path, Path], expected: list[str], two: Joined, tmp_path: Path
) -> None:
    shared, own = places
    # Relative: the workers have other working folders.
    out = os.path.relpath(shared / "hand", own)
    done = subprocess.run(
        command(out, "--scheduler", two.address), cwd=own, env=_environment(), capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^dashboard: http://127\.0\.0\.1:\d+/status$", done.stderr, re.MULTILINE)
    assert digest(shared / "hand") == expected
    assert all(count > 0 for count in executed(two.address).values())


def test_a_worker_dies_and_another_comes_in_the_middle(
    places: tuple[Path, Path], expected: list[str], two: Joined
) -> None:
    shared, own = places
    out = shared / "middle"
    process = subprocess.Popen(
        command(str(out), "--scheduler", two.address), cwd=own, env=_environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: files_in(out / "landsat.zarr" / "blocks") > 1, 200)
        two.kill("worker-1")
        assert not (out / "fused.zarr" / "blocks").exists()
        two.worker(3, own)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert digest(out) == expected
    left = executed(two.address)
    assert left.keys() == {"worker-2", "worker-3"}
    assert all(count > 0 for count in left.values())


def test_workers_that_do_not_see_the_run_folder_are_refused(places: tuple[Path, Path], two: Joined) -> None:
    _, own = places
    done = subprocess.run(
        command("run", "--scheduler", two.address), cwd=own, env=_environment(), capture_output=True, text=True, check=False,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert re.search(r"error: worker tcp://\S+ does not see the run folder run .* s3://bucket/run", done.stderr)


def test_workers_verify_and_repair_a_run(
    places: tuple[Path, Path], expected: list[str], two: Joined, finished: Path, run: Callable[..., tuple[int, str, str]]  # noqa: F811
) -> None:  # fmt: skip
    shared, own = places
    out, there = shared / "verified", ("--scheduler", two.address)
    shutil.copytree(finished, out)
    code, said, err = run(str(out), *there, command=verify.command)
    assert code == 0, err
    assert said.count("all as recorded") == 3
    assert not (out / "lease.json").exists()
    assert all(count > 1 for count in executed(two.address).values())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name in (
        "landsat.zarr/nir/c/3/0/0",
        "landsat.zarr/red/c/1/0/0",
        "landsat.zarr/qa/c/1/0/0",
        "fused.zarr/red/c/0/0/0",
    ):
        (out / name).unlink()
    code, said, err = run(str(out), *there, command=verify.command)
    assert code == 6
    assert [line for line in said.splitlines() if line.endswith("missing")] == [
        f"{name}: missing" for name in
        ("landsat.zarr/qa/c/1/0/0", "landsat.zarr/red/c/1/0/0", "landsat.zarr/nir/c/3/0/0", "fused.zarr/red/c/0/0/0")
    ]  # fmt: skip
    code, said, err = run(str(out), "--repair", *there, command=verify.command)
    assert code == 0, err
    assert "repaired: 4 files" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    # What the workers do not see they cannot check.
    shutil.copytree(finished, own / "verified")
    code, _, err = run(str(own / "verified"), *there, command=verify.command)
    assert code == 2
    assert "does not see the run folder" in err


def test_a_block_that_no_worker_can_check_is_not_said_to_be_damaged(
    finished: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(verify, "run_tasks", lambda *_: iter([cluster.Failed(0, "KilledWorker")]))
    monkeypatch.setattr(cubes.Staff, "gathered", lambda *_: nullcontext(cubes.Crew(object())))
    code, _, err = run(str(finished), command=verify.command)
    assert code == 5
    assert re.search(r"landsat\.zarr: t00000\S* failed to be checked 3 times \(KilledWorker\)", err)


def test_a_worker_of_other_versions_is_refused_also_if_it_comes_late(two: Joined) -> None:
    with cluster.connect(scheduler=two.address) as client:
        assert client is not None
        deployments.check_versions(client)
        two.worker(3, preload=OTHER_NUMPY)
        until(two.has(3))
        with pytest.raises(errors.InputError, match=r"has numpy 1\.0\.0 \(here \d"):
            list(cluster.run([], client))


def test_two_runs_on_one_scheduler_leave_each_other_their_weights_and_limits(
    places: tuple[Path, Path], two: Joined
) -> None:
    predictor = make("stfgan", ["red", "nir"], places[1] / "stfgan.safetensors")
    with cluster.connect(scheduler=two.address) as one, cluster.connect(scheduler=two.address) as other:
        assert one is not None
        assert other is not None
        with deployments.model_sent(one, predictor), cluster._watched(one, 60):
            with deployments.model_sent(other, predictor), cluster._watched(other, 90):
                assert [len(found) for found in plugins(one).values()] == [4, 4]
            # What the other has taken back was its own. The worker that comes now cannot see the file.
            assert [len(found) for found in plugins(one).values()] == [2, 2]
            two.worker(3, places[1])
            until(two.has(3))
            held = one.run(lambda path: len(checkpoint.contents(path)[0]), predictor.path)
            assert list(held.values()) == [predictor.path.stat().st_size] * 3
    with cluster.connect(scheduler=two.address) as client:
        assert client is not None
        assert [found for found in plugins(client).values() if found] == []


def plugins(client: Any) -> dict[str, list[str]]:
    """Of each worker the plugins of ours that it has."""

    def names(dask_worker: Any) -> list[str]:
        return [name for name in dask_worker.plugins if name.startswith("stfgan_xr")]

    return dict(client.run(names))


# ---------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("kind", "library", "extra"),
    [
        ("cuda", "dask-cuda", "cuda"),
        *((kind, "dask-jobqueue", "cluster") for kind in deployments.QUEUES),
        ("gateway", "dask-gateway", "cluster"),
        ("kubernetes", "dask-kubernetes", "cluster"),
    ],
)
def test_without_its_library_a_kind_says_what_to_install(
    kind: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dask_cuda", "dask_jobqueue", "dask_gateway", "dask_kubernetes.operator"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(errors.InputError, match=rf"--cluster {kind} needs {library}: .*\[{extra}\]"):
        deployments.start(kind, 1)


def test_a_batch_system_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(errors.InputError, match=r"--cluster lsf: there is no bsub here"):
        deployments.start("lsf", 1)


# Clusters that failed to start miss that they were not closed, when they are collected.
UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@UNCLOSED
def test_missing_options_of_a_batch_system_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    (tmp_path / "qsub").write_text("#!/bin/sh\n")
    (tmp_path / "qsub").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(errors.InputError, match=r"--cluster sge: .*cores and memory.* jobqueue\.sge"):
        deployments.start("sge", 1)
    gc.collect()


@UNCLOSED
def test_a_gateway_that_does_not_answer_is_said() -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("dask_gateway")
    with (
        dask.config.set({"gateway.address": "http://127.0.0.1:9"}),
        pytest.raises(errors.InputError, match=r"no cluster from dask-gateway .*gateway\.address"),
    ):
        deployments.start("gateway", 1)
    gc.collect()


@UNCLOSED
def test_kubernetes_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_kubernetes")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(errors.InputError, match=r"--cluster kubernetes: no cluster .*kubernetes\.image"):
        deployments.start("kubernetes", 1)
    gc.collect()


def test_a_scheduler_without_workers_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "PATIENCE", 0.3)
    with joined(tmp_path / "dask") as running, cluster.connect(scheduler=running.address) as client:
        assert client is not None
        with pytest.raises(errors.InputError, match=f"no worker after 0 s; start some: dask worker {running.address}"):
            deployments.make_fit(client, files.as_folder(tmp_path), "run.json", b"")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cluster", "swarm"], "--cluster 'swarm' is unknown; choose local, cuda, slurm, pbs"),
        (["--cluster", "local", "--scheduler", "tcp://127.0.0.1:9"], "choose one of them"),
    ],
)
def test_kinds_are_checked_before_anything_else(
    given: list[str], said: str, catalog: str, tmp_path: Path, run: Callable[..., tuple[int, str, str]]  # noqa: F811
) -> None:  # fmt: skip
    code, _, err = run(*arguments(catalog, tmp_path / "run"), *given)
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert said in err


def test_a_local_cluster_is_as_large_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cubes, "cores", lambda: 8)
    monkeypatch.setattr(cubes, "memory_left", lambda: 10 * 2**30)
    assert cubes.Staff().count(need=2**30) == 1
    assert cubes.Staff(cluster="local").count(need=2**30) == 8
    assert cubes.Staff(cluster="local").count(need=3 * 2**30) == 3
    assert cubes.Staff(cluster="local").count(need=99 * 2**30) == 1
    assert cubes.Staff(3, cluster="local").count(need=2**30) == 3
    assert cubes.Staff(cluster="slurm").count(need=99 * 2**30) == cubes.MOST_WORKERS


# ---------------------------------------------------------------- weights that are held in memory


def test_a_checkpoint_that_is_held_needs_no_file_and_is_still_checked(tmp_path: Path) -> None:
    there = tmp_path / "elsewhere" / "mine.safetensors"
    tensors, config = checkpoint.contents(checkpoint.shipped())
    checkpoint.hold(there, tensors, config)
    try:
        found = checkpoint.load_tensors(there)
        assert found.keys() == checkpoint.load_tensors(checkpoint.shipped()).keys()
        checkpoint.hold(there, tensors[:-4] + b"\0\0\0\1", config)
        with pytest.raises(errors.InputError, match="SHA-256"):
            checkpoint.load_tensors(there)
        checkpoint.drop(there)
        with pytest.raises(errors.InputError, match="SHA-256"):
            checkpoint.load_tensors(there)
    finally:
        checkpoint.drop(there)
    with pytest.raises(errors.InputError, match="no such checkpoint"):
        checkpoint.load_tensors(there)
