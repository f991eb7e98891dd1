"""Where tasks run: results, errors and order of submission, in this process and on a local cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask.delayed import delayed

from stfgan_xr import cluster, errors, fusion, store
from stfgan_xr.predictors.methods import make
from tests.synthetic import Scene, day


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise errors.SourceError(f"block {number} cannot be read")


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


def test_cuda_without_dask_cuda_or_driver_says_what_to_do() -> None:
    with pytest.raises(errors.InputError, match=r"dask-cuda|driver"), cluster.connect(kind="cuda"):
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
