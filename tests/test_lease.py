"""A run folder is one run's at a time, on a disk and in an object store, and no longer than its holder lives."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dask.delayed import Delayed

from pipelines import cubes
from stfgan_xr import files, fusion, lease, store
from stfgan_xr.errors import ResourceError
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.lease import LEASE, Lease, held, holder
from stfgan_xr.predictors.methods import make
from tests.object_server import Objects, always
from tests.synthetic import Scene, day
from tests.test_commands import catalog, run  # noqa: F401


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.05)


def write(folder: Folder, **changes: object) -> None:
    """A lease of another process, by default one that runs: the one that started this one."""
    with held(folder):
        stated = json.loads(folder.read(LEASE) or b"")
    folder.write_json(LEASE, stated | {"token": "other", "pid": os.getppid(), "started": time.time()} | changes)


def test_the_second_is_refused_with_who_holds_it(folder: Folder) -> None:
    with held(folder) as first:
        with pytest.raises(ResourceError, match=rf"is in use by process {os.getpid()} on .* since 20"):
            Lease(folder).take()
        first.check()
        assert holder(folder).token == first.token  # type: ignore[union-attr]
    assert folder.names() == []
    with held(folder):
        pass


def test_a_lease_that_is_given_back_meanwhile_is_taken_like_any_other(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = type(folder).create, list[str]()

    def create(self: Folder, key: str, content: bytes) -> bool:
        asked.append(key)
        if len(asked) == 1:
            return False  # somebody's, who lets go of it now
        self.write_json(LEASE, other)  # and somebody else takes it
        return real(self, key, content)

    with held(folder):
        other = json.loads(folder.read(LEASE) or b"") | {"token": "other", "pid": os.getppid(), "started": time.time()}
    monkeypatch.setattr(type(folder), "create", create)
    with pytest.raises(ResourceError, match=f"in use by process {os.getppid()}"):
        Lease(folder).take()
    assert holder(folder).token == "other"  # type: ignore[union-attr]


def test_a_lease_of_a_process_that_runs_holds(folder: Folder) -> None:
    write(folder)
    with pytest.raises(ResourceError, match=f"process {os.getppid()}"), held(folder):
        pass
    assert holder(folder).token == "other"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "changes",
    [
        {"until": time.time() - 1, "machine": "elsewhere"},
        {"pid": 2**22 - 3},
        {"started": time.time() - 1e6, "pid": os.getpid()},  # a number that another process has now
    ],
    ids=["expired", "gone", "number used again"],
)
def test_a_lease_of_nobody_is_taken_over(folder: Folder, changes: dict[str, object]) -> None:
    write(folder, **changes)
    with held(folder) as taken:
        assert holder(folder).token == taken.token  # type: ignore[union-attr]


def test_another_machine_is_believed_until_its_lease_ends(folder: Folder) -> None:
    write(folder, machine="elsewhere", pid=2**22 - 3)
    with pytest.raises(ResourceError), held(folder):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"token": 1, "until": "x"}', b"\xff"])
def test_a_lease_that_cannot_be_read_holds_nothing(folder: Folder, content: bytes) -> None:
    folder.write(LEASE, content)
    with held(folder) as taken:
        taken.check()


def test_it_is_renewed_and_lost_if_it_cannot_be(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.02)
    with held(folder) as mine:
        first = holder(folder).until  # type: ignore[union-attr]
        deadline = time.monotonic() + 20
        while holder(folder).until <= first and time.monotonic() < deadline:  # type: ignore[union-attr]
            time.sleep(0.02)
        assert holder(folder).until > first  # type: ignore[union-attr]
        mine.check()
        write_over = json.loads(folder.read(LEASE) or b"") | {"token": "other"}
        while mine.renewed and time.monotonic() < deadline:
            folder.write_json(LEASE, write_over)  # a renewal that was under way may come after the first
            time.sleep(0.02)
        with pytest.raises(ResourceError, match="run the same command again"):
            mine.check()
    assert holder(folder).token == "other"  # type: ignore[union-attr]  # not given back: it is not ours


def test_a_disk_that_fails_for_a_moment_does_not_end_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real, failed, failing = files.as_folder(tmp_path / "run"), files.LocalFolder.read, list[str](), [False]
    monkeypatch.setattr(lease, "RENEWED", 0.02)

    def read(self: files.LocalFolder, key: str) -> bytes | None:
        if failing[0]:
            failed.append(key)
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(self, key)

    monkeypatch.setattr(files.LocalFolder, "read", read)
    with held(folder) as mine:
        failing[0] = True
        _until(lambda: len(failed) > 2)
        failing[0] = False
        before = mine.renewed
        _until(lambda: mine.renewed > before)
        failing[0] = True
    # And that it cannot be given back is not over what ended the run.
    assert (tmp_path / "run" / LEASE).exists()


def _until(answer: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not answer():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lease_is_as_old_as_what_was_written(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, clock = Lease(folder), [time.time()]
    mine.take()
    monkeypatch.setattr(lease.time, "time", lambda: clock[0])
    real = type(folder).write

    def slow(self: Folder, key: str, content: bytes) -> None:
        real(self, key, content)
        clock[0] += 100
        mine._ended.set()

    monkeypatch.setattr(type(folder), "write", slow)
    monkeypatch.setattr(lease, "RENEWED", 0)
    mine._renew()
    assert holder(folder).until == mine.renewed + lease.SECONDS  # type: ignore[union-attr]


def test_a_store_that_cannot_be_written_is_no_lease(objects: Objects) -> None:
    objects.fault = always("500", "PUT", LEASE)
    with pytest.raises(ResourceError, match="cannot write s3://bucket/run"), held(files.as_folder("s3://bucket/run")):
        pass


def _compete(take: Callable[[], bool], count: int) -> int:
    """How many of some threads that begin together get it."""
    won, ready = [], threading.Barrier(count)

    def one() -> None:
        ready.wait()
        if take():
            won.append(1)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(won)


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_begin_together_one_gets_it(folder: Folder, stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "SETTLE", 0.5)
    if stale:
        write(folder, until=0)

    def take() -> bool:
        try:
            Lease(folder).take()
        except ResourceError:
            return False
        return True

    assert _compete(take, 6) == 1


@pytest.mark.parametrize("conditional", [True, False])
def test_a_file_is_created_once(objects: Objects, tmp_path: Path, conditional: bool) -> None:
    objects.conditional = conditional
    for where in ("s3://bucket/run", tmp_path / "run"):
        folder = files.as_folder(where)
        assert folder.create("a", b"1")
        assert not folder.create("a", b"2")
        assert folder.read("a") == b"1"
        assert folder.names() == ["a"]


def _hold(out: str, taken: str) -> None:
    with held(files.as_folder(out)):
        Path(taken).touch()
        time.sleep(100)


def test_two_commands_on_one_folder(
    tmp_path: Path,
    catalog: str,  # noqa: F811
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
) -> None:
    out, taken = tmp_path / "run", tmp_path / "taken"
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(out), str(taken)))
    process.start()
    while not taken.exists():
        assert process.is_alive()
        time.sleep(0.01)
    command = ["--catalog", catalog, "--bands", "red", "--dates", "2020-03-01", "--bracket-days", "2"]
    code, _, err = run(*command, "--out", str(out), command=cubes.command)
    assert code == 5
    (line,) = err.strip().splitlines()
    assert f"is in use by process {process.pid} on" in line
    process.kill()
    process.join()
    # Its holder is gone: no waiting for the lease to end.
    assert run(*command, "--out", str(out), command=cubes.command)[0] == 0
    assert not (out / LEASE).exists()


def test_a_block_of_a_run_that_lost_its_folder_is_not_written(tmp_path: Path) -> None:
    scene = Scene(height=64, width=64)
    job = fusion.plan(scene.landsat, scene.modis, make("linear", scene.bands), [day(n) for n in range(8, 12)], tile=64)
    folder, target = as_folder(tmp_path), tmp_path / "fused.zarr"
    pending = store.prepare(target, job.layout, {})
    variables = store.observation_variables(scene.bands)
    layout = store.Layout(scene.fine, (day(3),), variables, 64, 1)
    counts = scene.landsat.isel(time=[0]).chunk()
    cubes = store.prepare(tmp_path / "landsat.zarr", layout, {})

    def tasks(token: str) -> list[Delayed]:
        permit = partial(lease.refuse_others, folder, token)
        written = store.write_tasks(counts, tmp_path / "landsat.zarr", layout, cubes, permit=permit)
        return [*job.write_tasks(target, pending, permit), *written]

    with lease.held(folder) as first:
        old = tasks(first.token)
    with lease.held(folder) as second:
        for task in old:  # a worker that goes on with them
            with pytest.raises(ResourceError, match="the run that asked for this block has ended"):
                task.compute(scheduler="synchronous")
        assert not store.recorded_blocks(target)
        assert not list(target.glob("red/c/**/*"))
        for task in tasks(second.token):
            task.compute(scheduler="synchronous")
    assert len(store.recorded_blocks(target)) == len(store.recorded_blocks(tmp_path / "landsat.zarr")) == 1
