"""Where tasks run: results, errors and order of submission, in this process and on a local cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.system
import numpy as np
import pytest
import xarray as xr
from dask.delayed import delayed
from distributed import LocalCluster
from distributed.comm.core import CommClosedError
from distributed.core import Status

from pipelines import cubes
from stfgan_xr import cluster, deployments, errors, files, fusion, store
from stfgan_xr.predictors.fitfc import FitFC
from stfgan_xr.predictors.methods import make
from stfgan_xr.predictors.uncertainty import CAUSES, Calibrated, Uncertainty
from tests.failing_tasks import die, fail, fail_oddly, fail_until, hang, square, starve
from tests.synthetic import Scene, day
from tests.test_commands import arguments, catalog, run  # noqa: F401


def test_in_this_process_tasks_run_in_order_and_one_at_a_time() -> None:
    made = []

    def tasks():  # type: ignore[no-untyped-def]
        for number in range(5):
            made.append(number)
            yield delayed(square)(number)

    results = cluster.run(tasks(), None)
    assert next(results) == 0
    assert made == [0]
    assert list(results) == [1, 4, 9, 16]


def test_errors_of_tasks_arrive_as_they_are() -> None:
    with pytest.raises(errors.SourceError, match="block 3"):
        list(cluster.run([delayed(fail)(3)], None))


def test_one_local_worker_is_this_process() -> None:
    with cluster.connect(1) as client:
        assert client is None


def test_no_scheduler_answers() -> None:
    with (
        pytest.raises(errors.InputError, match="no Dask scheduler answers"),
        cluster.connect(scheduler="tcp://127.0.0.1:9"),
    ):
        pass


def test_an_encrypted_scheduler_without_certificates_is_said() -> None:
    with (
        pytest.raises(errors.InputError, match=r"no Dask scheduler answers there \(TypeError: TLS expects"),
        cluster.connect(scheduler="tls://127.0.0.1:9"),
    ):
        pass


class Ending:
    """A cluster that cannot be closed, with the client that it gives."""

    status = Status.running

    def get_client(self) -> Ending:
        return self

    @property
    def cluster(self) -> Ending:
        return self

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        raise ConnectionError("https://gateway.example/api?token=secret does not answer")


@pytest.mark.parametrize(
    ("raised", "seen"), [(CommClosedError, errors.ResourceError), (KeyboardInterrupt, None), (None, None)]
)
def test_a_cluster_that_cannot_be_closed_is_told_of_and_hides_nothing(
    raised: type[BaseException] | None, seen: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(deployments, "start", lambda *_: Ending())
    with pytest.raises(seen or raised) if raised else nullcontext(), cluster.connect(2, kind="gateway"):  # type: ignore[arg-type]
        if raised:
            raise raised
    assert "the cluster may still be there: ConnectionError: https://gateway.example/api does" in caplog.text


def test_a_cluster_whose_scheduler_does_not_answer_is_closed_and_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(self: Ending) -> Ending:
        raise OSError("Timed out trying to connect to gateway://gateway.example/?token=secret")

    monkeypatch.setattr(Ending, "get_client", silent)
    monkeypatch.setattr(deployments, "start", lambda *_: Ending())
    with (
        pytest.raises(errors.ResourceError, match=r"--cluster gateway: .* does not answer \(OSError: Timed [^?]*\)"),
        cluster.connect(2, kind="gateway"),
    ):
        pass
    assert "the cluster may still be there" in caplog.text


def test_a_scheduler_that_is_lost_before_workers_came_is_said_so(tmp_path: Path) -> None:
    def lost(*_: object, **__: object) -> None:
        raise OSError("Timed out trying to connect to tcp://10.0.0.5:8786 after 30 s")

    there = SimpleNamespace(
        cluster=None,
        id="a",
        status="closed",
        nthreads=lambda: {"tcp://10.0.0.5:4000": 1},
        run=lost,
        register_plugin=lost,
    )
    for client in (SimpleNamespace(cluster=None, nthreads=lost), there):
        with pytest.raises(errors.ResourceError, match="scheduler is lost"):
            deployments.make_fit(client, files.as_folder(tmp_path), "run.json", b"")  # type: ignore[arg-type]
    with pytest.raises(errors.ResourceError, match="scheduler is lost"):
        list(cluster.run([], there))  # type: ignore[arg-type]


@pytest.mark.parametrize("ended", [Status.closed, Status.failed, "closed"])
def test_a_cluster_that_ended_is_not_waited_for(ended: Any) -> None:
    client = SimpleNamespace(nthreads=dict, status="running", cluster=SimpleNamespace(status=ended))
    with pytest.raises(errors.ResourceError, match="ended before a worker came"):
        deployments.await_workers(client)  # type: ignore[arg-type]


def _groups(folder: Path, files: dict[str, object]) -> None:
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")


GIB = 2**30
CACHE = f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\nunevictable 0"


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/", {"memory.max": 8 * GIB, "memory.current": 2 * GIB}, 6),
        ("0::/a/job", {"a/job/memory.max": 8 * GIB, "a/job/memory.current": 2 * GIB}, 6),
        ("0::/a/job", {"a/memory.max": 8 * GIB, "a/memory.current": 7 * GIB, "a/job/memory.max": "max"}, 1),
        ("4:cpu,memory:/job\n0::/", {"memory/job/memory.limit_in_bytes": 4 * GIB, "memory/job/memory.usage_in_bytes": GIB}, 3),
        # In a container the group is the root of what is mounted.
        ("4:memory:/docker/4711", {"memory/memory.limit_in_bytes": 4 * GIB, "memory/memory.usage_in_bytes": GIB}, 3),
        # What is kept of files is given up when memory is asked for.
        ("0::/", {"memory.max": 8 * GIB, "memory.current": 8 * GIB, "memory.stat": CACHE}, 2),
        ("4:memory:/", {"memory/memory.limit_in_bytes": 8 * GIB, "memory/memory.usage_in_bytes": 8 * GIB,
                        "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}"}, 2),
        ("0::/", {"memory.max": "max", "memory.current": GIB}, 64),
        ("nonsense", {}, 64),
    ],
)  # fmt: skip
def test_the_limit_of_a_control_group_is_what_a_machine_can_give(
    own: str, files: dict[str, object], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _groups(tmp_path, {"own": own} | {f"groups/{name}": value for name, value in files.items()})
    monkeypatch.setattr(cluster, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(cluster, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cluster.psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GIB))
    assert cluster.memory_left() == left * GIB


def test_cores_are_those_that_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.cores() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(dask.system, "_try_extract_cgroup_cpu_quota", lambda: (50_000, 100_000))
    assert cluster.cores() == 1


def test_cuda_without_a_driver_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def absent(threads_per_worker: int) -> None:
        assert threads_per_worker == deployments.BLOCKS_A_GPU
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=absent))
    with (
        pytest.raises(errors.InputError, match=r"no usable NVIDIA driver \(NVMLError\); use --cluster local"),
        cluster.connect(kind="cuda"),
    ):
        pass


def test_a_local_cluster_writes_the_same_cube_and_passes_errors_on(tmp_path: Path) -> None:
    scene = Scene(height=128, width=128)
    job = fusion.plan(
        scene.landsat, scene.modis, make("delta", scene.bands), [day(n) for n in range(8, 24)], tile=64, run=4
    )
    with cluster.connect(2) as client:
        assert client is not None
        pending = store.prepare(tmp_path / "two.zarr", job.layout, {})
        records = list(cluster.run(job.write_tasks(tmp_path / "two.zarr", pending), client))
        assert sorted(r["block"] for r in records) == sorted(b.name for b in pending)
        assert sorted(cluster.run((delayed(square)(n) for n in range(40)), client)) == [n * n for n in range(40)]
        with pytest.raises(errors.SourceError, match="block 7"):
            list(cluster.run([delayed(fail)(7)], client))
    store.seal(tmp_path / "two.zarr")
    lazy = fusion.fuse(scene.landsat, scene.modis, make("delta", scene.bands), [day(n) for n in range(8, 24)])
    xr.testing.assert_equal(store.open_cube(tmp_path / "two.zarr").load(), lazy.compute())
    assert np.isfinite(lazy.red.values).any()


def test_two_blocks_at_once_in_a_worker_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    scene = Scene(height=128, width=128, bands=("red", "nir"))
    landsat, modis, targets = scene.landsat, scene.modis, [day(n) for n in range(8, 16)]
    job = fusion.plan(landsat, modis, make("stfgan", scene.bands), targets, tile=64, run=4)
    digests = []
    for threads in (1, deployments.BLOCKS_A_GPU):
        path = tmp_path / f"{threads}.zarr"
        with LocalCluster(n_workers=1, threads_per_worker=threads, dashboard_address=":0") as workers:
            client = workers.get_client()
            list(cluster.run(job.write_tasks(path, store.prepare(path, job.layout, {})), client))
        digests.append(store.seal(path)["sha256"])
    assert digests[0] == digests[1]


# ---------------------------------------------------------------- tasks that fail


def test_a_task_that_fails_oddly_is_tried_again_and_then_given_up(tmp_path: Path) -> None:
    tasks = [
        delayed(square)(2), delayed(fail_oddly)(1), delayed(fail_until)(str(tmp_path / "two"), 3),
        delayed(fail_until)(str(tmp_path / "three"), 4), delayed(square)(3),
    ]  # fmt: skip
    four, first, three, second, nine = cluster.run(tasks, None)
    assert (four, three, nine) == (4, 3, 9)
    assert first == cluster.Failed(1, "ZeroDivisionError: in block 1: https://a.example/b.tif")
    assert second == cluster.Failed(3, "OSError: not yet")
    assert (tmp_path / "three").read_text() == "x" * cluster.ATTEMPTS


def test_a_task_that_takes_too_long_is_stopped() -> None:
    begun, handler = time.monotonic(), signal.getsignal(signal.SIGALRM)
    hung, done = cluster.run([delayed(hang)(60), delayed(square)(3)], None, minutes=0.1 / 60)
    assert done == 9
    assert isinstance(hung, cluster.Failed)
    assert "took more than" in hung.why
    assert time.monotonic() - begun < 50
    assert signal.getsignal(signal.SIGALRM) is handler


def test_a_task_without_memory_ends_the_run_with_what_to_do() -> None:
    with pytest.raises(errors.ResourceError, match="smaller --tile or fewer --workers"):
        list(cluster.run([delayed(starve)(0)], None))


@pytest.mark.slow
def test_tasks_that_kill_hang_or_fail_are_given_up_on_a_cluster_and_no_others(tmp_path: Path) -> None:
    bad = {3: delayed(die)(1), 5: delayed(hang)(600), 8: delayed(fail_oddly)(8)}
    passing = {10: delayed(fail_until)(str(tmp_path / "mark"), 2)}
    tasks = [(bad | passing).get(number, delayed(square)(number)) for number in range(14)]
    with cluster.connect(2) as client:
        results = list(cluster.run(tasks, client, minutes=10 / 60))
        with pytest.raises(errors.ResourceError, match="out of memory"):
            list(cluster.run([delayed(starve)(0)], client))
    given_up = {result.number: result.why for result in results if isinstance(result, cluster.Failed)}
    assert given_up.keys() == bad.keys()
    assert "KilledWorker" in given_up[3]
    assert "KilledWorker" in given_up[5]
    assert given_up[8] == "ZeroDivisionError: in block 8: https://a.example/b.tif"
    others = [result for result in results if not isinstance(result, cluster.Failed)]
    assert sorted(others) == sorted([2, *(n * n for n in range(14) if n not in bad and n not in passing)])


@pytest.mark.slow
def test_workers_that_are_given_up_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "REPLACED", 0.5)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}), cluster.connect(2) as client:
        assert client is not None
        # What Dask does with one that dies while it starts: it does not start it again.
        for nanny in client.cluster.workers.values():
            nanny.auto_restart = False
            os.kill(nanny.pid, signal.SIGKILL)
        assert sorted(cluster.run((delayed(square)(n) for n in range(4)), client)) == [0, 1, 4, 9]
        client.wait_for_workers(2, timeout=300)


# ---------------------------------------------------------------- blocks that fail


def test_blocks_that_fail_are_listed_and_the_rest_goes_on(
    catalog: str,  # noqa: F811
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked, out = fusion.fuse_block, [], tmp_path / "run"

    def poisoned(landsat: Any, modis: Any, predictor: Any, window: Any, *more: Any) -> Any:
        asked.append(window)
        if window.top == window.left == 0:
            raise ArithmeticError("poison")
        return real(landsat, modis, predictor, window, *more)

    given = [*arguments(catalog, out, dates="2020-03-01/2020-03-02"), "--tile", "64", "--bands", "red"]
    given += ["--bracket-days", "4"]
    monkeypatch.setattr(fusion, "fuse_block", poisoned)
    code, _, err = run(*given)
    assert code == 6
    assert "1 blocks failed 3 times" in err
    assert "ArithmeticError: poison" in err
    document = json.loads((out / "run.json").read_text())
    assert document["status"] == "incomplete"
    assert document["failed"] == {
        "fused.zarr": [{"block": "t00000-00002_y000000_x000000", "why": "ArithmeticError: poison"}]
    }
    assert len(asked) == 3 + cluster.ATTEMPTS
    assert len(store.missing_blocks(out / "fused.zarr")) == 1
    # The cubes alone do not make another run of it.
    alone = ["--catalog", catalog, "--dates", "2020-03-01/2020-03-02", "--bands", "red", "--bracket-days", "4"]
    assert run(*alone, "--out", str(out), command=cubes.command)[0] == 0
    assert json.loads((out / "run.json").read_text()) == document
    monkeypatch.setattr(fusion, "fuse_block", real)
    assert run(*given)[0] == 0
    document = json.loads((out / "run.json").read_text())
    assert document["status"] == "complete"
    assert "failed" not in document


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        ({}, {"bracket_days": 30}, "bracket_days was 64, now 30"),
        ({}, {"keep_observed": False}, "keep_observed was true, now false"),
        ({"count": 9}, {"count": 20}, "count was 9, now 20"),
        ({"own": 0.004}, {"own": 0.005}, "parameters: uncertainty was"),
        ({"own": 0.004, "count": 9}, {"own": 0.004}, "parameters: predictor was"),
    ],
)
def test_a_cube_that_is_written_from_python_is_not_gone_on_with_in_another_way(
    one: dict[str, Any], other: dict[str, Any], named: str, tmp_path: Path
) -> None:
    scene = Scene(height=64, width=64)

    def job(count: int = 20, own: float | None = None, **options: Any) -> fusion.Job:
        method: Any = FitFC(scene.bands, scene.ratio, radius=4, count=count)
        if own is not None:
            causes, widths = ((1e-5,) * len(CAUSES),) * 2, ((0.8, 2.0),) * 2
            method = Calibrated(method, Uncertainty(scene.bands, causes, widths, (own, own)))
        return fusion.plan(scene.landsat, scene.modis, method, [day(8)], tile=64, **options)

    cubes.write(job(**one), tmp_path / "a.zarr")
    assert cubes.write(job(**one), tmp_path / "a.zarr").sizes["time"] == 1
    with pytest.raises(errors.InputError, match=named):
        cubes.write(job(**other), tmp_path / "a.zarr")


def test_when_every_block_fails_not_all_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MOST_FAILED", 3)
    scene = Scene(height=128, width=128)
    job = fusion.plan(scene.landsat, scene.modis, make("delta", scene.bands), [day(8)], tile=64, run=1)
    pending = store.prepare(tmp_path / "a.zarr", job.layout, {})
    crew = cubes.Crew()
    cubes.write_blocks("a.zarr", [delayed(fail_oddly)(n) for n in range(4)], pending, job.layout, crew)
    assert len(crew.failed["a.zarr"]) == 3
    with pytest.raises(errors.IncompleteError, match="3 blocks failed 3 times"):
        crew.refuse_failed(files.as_folder(tmp_path))


class Telling:
    """A client some of whose words to the workers are lost."""

    def __init__(self, lost: int, status: str = "running") -> None:
        self.lost, self.status, self.said = lost, status, list[str]()

    def tell(self, what: str) -> None:
        self.said.append(what)
        if len(self.said) <= self.lost:
            raise CommClosedError("a worker died meanwhile")


def test_a_worker_that_dies_while_all_are_told_something_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments.time, "sleep", lambda _: None)
    client = Telling(2)
    deployments.tell(client, client.tell, "a")  # type: ignore[arg-type]
    assert client.said == ["a"] * 3


@pytest.mark.parametrize("client", [Telling(1000), Telling(0, "closed")])
def test_a_scheduler_that_is_lost_is_said_so(client: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments.time, "sleep", lambda _: None)
    with pytest.raises(errors.ResourceError, match="scheduler is lost"):
        deployments.tell(client, client.tell, "a")  # type: ignore[arg-type]


def test_a_watchdog_that_is_taken_back_ends_nobody_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[int]()
    monkeypatch.setattr(cluster.os, "_exit", ended.append)
    kept, taken_back = cluster._watchdog(0.1, ("write_block",)), cluster._watchdog(0.1, ("write_block",))
    for plugin in (kept, taken_back):
        plugin.transition("write_block-1", "ready", "executing")
    taken_back.teardown(None)
    for timer in (*kept.timers.values(), *taken_back.timers.values()):
        timer.join()
    assert ended == [cluster.TOO_LONG]
