"""After a loss of power, when only what was told to the disk is there, no recorded block is lost."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stfgan_xr import store
from stfgan_xr.files import LocalFolder
from tests.synthetic import corner
from tests.test_store import random_block, small_layout

File = tuple[int, int]


class Disk:
    """What of a folder would be there after a loss of power: POSIX promises what ``fsync`` was called for, and no more.

    A file's content is safe after ``fsync`` of the file, the names in a folder after ``fsync`` of the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.contents: dict[File, bytes] = {}
        self.names: dict[int, dict[str, File]] = {root.stat().st_ino: {}}
        self.folders: dict[File, int] = {}

    def note(self, descriptor: int) -> None:
        """A call of ``fsync``."""
        path, found = Path(f"/proc/self/fd/{descriptor}").resolve(), os.fstat(descriptor)
        if not stat.S_ISDIR(found.st_mode):
            self.contents[_file(path)] = path.read_bytes()
            return
        self.names[found.st_ino] = {inner.name: _file(inner) for inner in path.iterdir()}

    def exact(self, to: Path) -> None:
        """Write what was told to the disk."""
        self._folder(self.root.stat().st_ino, to)

    def _folder(self, number: int, to: Path) -> None:
        to.mkdir()
        for name, file in self.names.get(number, {}).items():
            if file[1] == 0:
                self._folder(file[0], to / name)
            else:
                (to / name).write_bytes(self.contents.get(file, b""))

    def delayed(self, to: Path) -> None:
        """Write all names, and no content that was not told: as file systems do that allocate late."""
        shutil.copytree(self.root, to)
        for path in self.root.rglob("*"):
            if path.is_file() and _file(path) not in self.contents:
                (to / path.relative_to(self.root)).write_bytes(b"")


def _file(path: Path) -> File:
    """A file by number and time, as numbers are given anew; a folder by its number."""
    found = path.stat()
    return found.st_ino, 0 if stat.S_ISDIR(found.st_mode) else found.st_mtime_ns


@contextmanager
def watched(disk: Disk, then: Callable[[], None]) -> Iterator[None]:
    """Within it, the disk notes what it is told, and something happens after each change of a name."""
    told, real = os.fsync, {name: getattr(Path, name) for name in ("replace", "rename", "unlink")}

    def fsync(descriptor: int) -> None:
        told(descriptor)
        disk.note(descriptor)

    def changed(name: str) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            result = real[name](*arguments, **options)
            then()
            return result

        return change

    os.fsync = fsync
    for name in real:
        setattr(Path, name, changed(name))
    try:
        yield
    finally:
        os.fsync = told
        for name, function in real.items():
            setattr(Path, name, function)


def arrays(layout: store.Layout, block: store.Block) -> dict[str, np.ndarray]:
    return random_block(layout, block, np.random.default_rng(block.first * 1000 + block.window.left))


def go_on(path: Path, layout: store.Layout) -> str:
    """What a run does with what it finds; the digest of all."""
    store.prepare(path, layout, {"seed": 1}, region=corner(layout.grid))
    damages = store.check(path)
    assert {damage.why for damage in damages} <= {"missing"}, damages
    for block in store.prepare(path, layout, {"seed": 1}, region=corner(layout.grid)):
        store.write_block(path, layout, block, arrays(layout, block))
    store.seal(path)
    assert store.check(path) == []
    return store.content_digest(path)


@pytest.fixture
def losses(tmp_path: Path) -> tuple[Disk, Callable[[], None], list[Path]]:
    """A disk, what loses its power, and the folders that are there afterwards."""
    (tmp_path / "disk").mkdir()
    disk, found = Disk(tmp_path / "disk"), list[Path]()

    def lose() -> None:
        for left in (disk.exact, disk.delayed):
            found.append(tmp_path / f"{left.__name__}-{len(found)}")
            left(found[-1])

    return disk, lose, found


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loss_of_power_at_any_change_loses_no_recorded_block(
    losses: tuple[Disk, Callable[[], None], list[Path]], every: int
) -> None:
    disk, lose, found = losses
    changes = itertools.count()
    layout = small_layout(height=64, width=64, days=4, tile=64, run=2)
    kept = dict[int, set[str]]()
    with watched(disk, lambda: None if next(changes) % every else lose()):
        pending = store.prepare(disk.root / "a.zarr", layout, {"seed": 1}, region=corner(layout.grid))
        for number, block in enumerate(pending, 1):
            store.write_block(disk.root / "a.zarr", layout, block, arrays(layout, block))
            kept[len(found)] = {block.name for block in pending[:number]}
        store.seal(disk.root / "a.zarr")
        sealed = len(found)
        lose()
    assert len(found) > 12
    whole = store.content_digest(disk.root / "a.zarr")
    for number, folder in enumerate(found):
        path = folder / "a.zarr"
        # What the command was told is done is done.
        done = [names for count, names in kept.items() if count <= number]
        assert not done or done[-1] <= {block["block"] for block in store.records(path)}
        assert number < sealed or store.is_complete(path)
        assert go_on(path, layout) == whole


def test_damage_that_was_taken_back_stays_so(losses: tuple[Disk, Callable[[], None], list[Path]]) -> None:
    disk, lose, found = losses
    path, layout = disk.root / "a.zarr", small_layout(height=64, width=64, days=4, tile=64, run=2)
    with watched(disk, lambda: None):
        for block in store.prepare(path, layout, {"seed": 1}, region=corner(layout.grid)):
            store.write_block(path, layout, block, arrays(layout, block))
        store.seal(path)
        (path / "red/c/0/0/0").write_bytes(b"?")
        LocalFolder(path).settle(["red/c/0/0/0"])
        damages = store.check(path)
        store.reopen(path, damages)
        lose()
    for folder in found:
        assert [block.name for block in store.prepare(folder / "a.zarr", layout, {"seed": 1}, region=corner(layout.grid))] == [
            damage.block for damage in damages
        ]  # fmt: skip
        go_on(folder / "a.zarr", layout)
