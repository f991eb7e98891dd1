"""The store against a model of it in memory: created, written, killed, gone on with, given more days and other input,
damaged, verified, repaired, sealed, removed, in any order."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stfgan_xr import errors, store
from stfgan_xr.files import LocalFolder
from stfgan_xr.grid import Window
from tests.synthetic import corner, day, grid


class Killed(BaseException):
    """The process ended here."""


@contextmanager
def killed_at(change: int, half: bool) -> Iterator[None]:
    """Within it, the process ends at a change of a file, and may leave half of the new one."""
    real, left, dead = os.replace, [change], [False]

    def replace(self: Path, target: Any) -> Any:
        left[0] -= 1
        if left[0] <= 0 or dead[0]:
            dead[0] = True
            if half and self.exists():
                os.truncate(self, self.stat().st_size // 2)
            raise Killed
        return real(self, target)

    before = Path.replace, Path.unlink
    Path.replace = replace  # type: ignore[method-assign, assignment]
    try:
        yield
    except Killed:
        pass
    finally:
        Path.replace, Path.unlink = before  # type: ignore[method-assign]


MOST_DAYS = 9


class Cube(RuleBasedStateMachine):
    """A cube of twelve blocks or more on a disk, and what should be in it.

    ``torn`` means that it was killed while it was given more days, or blocks of it were taken back: until the same call
    ends, it is not to be relied on, and nobody is told that it is complete.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "a.zarr"
        variables = store.observation_variables(("red",))
        self.layout = store.Layout(grid(48, 32), tuple(day(n) for n in range(4)), variables, 16, 2)
        self.rng = np.random.default_rng(0)
        self.whole = {
            name: self.rng.integers(0, 9000, (MOST_DAYS, 48, 32)).astype(variable.dtype)
            for name, variable in self.layout.variables.items()
        }
        self.past = [self.whole]
        self.blocks = list(self.layout.blocks())
        self.there, self.complete, self.torn = False, False, False
        self.stale: set[str] = set()
        self.written: set[str] = set()
        self.hurt: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def arrays(self, block: store.Block) -> dict[str, np.ndarray]:
        where = (slice(block.first, block.last), *block.window.slices)
        return {name: values[where] for name, values in self.whole.items()}

    def missing(self) -> list[str]:
        return [block.name for block in self.blocks if block.name not in self.written]

    def prepare(self) -> list[store.Block]:
        return store.prepare(
            self.path, self.layout, {"seed": 0}, region=corner(self.layout.grid, 20), stale=sorted(self.stale)
        )

    @rule()
    def resume(self) -> None:
        pending = self.prepare()
        self.there, self.torn = True, False
        self.stale.clear()
        assert [block.name for block in pending] == self.missing()

    @precondition(lambda self: self.there)
    @rule(more=st.integers(1, 3), change=st.integers(0, 12), half=st.booleans())
    def extend(self, more: int, change: int, half: bool) -> None:
        """More days at the end; killed at a change of a file, unless that is 0."""
        days = min(len(self.layout.days) + more, MOST_DAYS)
        self.renew(replace(self.layout, days=tuple(day(n) for n in range(days))), set(), change, half)

    @precondition(lambda self: self.written)
    @rule(seed=st.integers(0, 2**32), change=st.integers(0, 12), half=st.booleans())
    def other_input(self, seed: int, change: int, half: bool) -> None:
        """A block that is to become another."""
        name = random.Random(seed).choice(sorted(self.written))
        block = next(block for block in self.blocks if block.name == name)
        self.whole = {name: values.copy() for name, values in self.whole.items()}
        for values in self.whole.values():
            part = values[(slice(block.first, block.last), *block.window.slices)]
            part[:] = self.rng.integers(0, 9000, part.shape)
        self.past.append(self.whole)
        self.renew(self.layout, {name}, change, half)

    def renew(self, layout: store.Layout, stale: set[str], change: int, half: bool) -> None:
        before = list(self.layout.days)
        self.layout, self.stale = layout, self.stale | stale
        self.blocks = list(layout.blocks())
        with killed_at(change or 10**6, half):
            self.prepare()
            self.stale.clear()
        names = {block.name for block in self.blocks} - self.stale - stale
        changed = bool(stale) or list(layout.days) != before or bool(self.stale)
        self.written &= names
        self.hurt &= names
        self.torn = bool(change) and (changed or self.torn)
        self.complete = store.is_complete(self.path) if self.torn else self.complete and not changed

    @rule(change=st.integers(1, 25), half=st.booleans())
    def create_and_die(self, change: int, half: bool) -> None:
        with killed_at(change, half):
            self.prepare()
        if not self.there:
            self.there = store.is_there(self.path)

    @precondition(lambda self: self.there and not self.complete and not self.torn)
    @rule(number=st.integers(0, 29))
    def write(self, number: int) -> None:
        block = self.blocks[number % len(self.blocks)]
        store.write_block(self.path, self.layout, block, self.arrays(block))
        self.written.add(block.name)
        self.hurt.discard(block.name)

    @precondition(lambda self: self.there and not self.complete and not self.torn)
    @rule(number=st.integers(0, 29), change=st.integers(1, 4), half=st.booleans())
    def write_and_die(self, number: int, change: int, half: bool) -> None:
        block = self.blocks[number % len(self.blocks)]
        with killed_at(change, half):
            store.write_block(self.path, self.layout, block, self.arrays(block))
            self.written.add(block.name)
        # Whole shards: what was damaged before may be whole again.
        if change > 2:
            self.hurt.discard(block.name)
        elif block.name in self.hurt:
            self.written.discard(block.name)
            (self.path / store.RECORDS / f"{block.name}.json").unlink()
            self.hurt.discard(block.name)

    @precondition(lambda self: self.written and not self.torn)
    @rule(seed=st.integers(0, 2**32), how=st.sampled_from(["delete", "cut", "flip"]))
    def damage(self, seed: int, how: str) -> None:
        draw = random.Random(seed)
        name = draw.choice(sorted(self.written))
        block = next(block for block in self.blocks if block.name == name)
        top, left = block.window.top // 16, block.window.left // 16
        path = self.path / draw.choice(["red", "qa"]) / f"c/{block.first // 2}/{top}/{left}"
        if not path.exists():
            return
        content = bytearray(path.read_bytes())
        if how == "delete":
            path.unlink()
        elif how == "cut":
            path.write_bytes(content[: draw.randrange(max(1, len(content)))])
        elif content:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
        self.hurt.add(name)

    @precondition(lambda self: self.there and not self.torn)
    @rule()
    def verify(self) -> None:
        found = store.check(self.path)
        # Two flips of the same bit are none.
        assert {damage.block for damage in found} - set(self.missing()) <= self.hurt
        for name in self.hurt - {damage.block for damage in found}:
            block = next(block for block in self.blocks if block.name == name)
            assert store.check_block(self.path, block) == []
            self.hurt.discard(name)
        assert {damage.block for damage in found} == self.hurt | set(self.missing())

    @precondition(lambda self: self.there and not self.torn)
    @rule()
    def repair(self) -> None:
        found = store.check(self.path)
        store.reopen(self.path, found)
        names = {damage.block for damage in found}
        pending = self.prepare()
        assert {block.name for block in pending} == names
        for block in pending:
            store.write_block(self.path, self.layout, block, self.arrays(block))
        assert store.check(self.path) == []
        self.written, self.hurt, self.complete = {block.name for block in self.blocks}, set(), False

    @precondition(lambda self: self.there and not self.torn)
    @rule(change=st.integers(1, 12), half=st.booleans())
    def repair_and_die(self, change: int, half: bool) -> None:
        found, before = store.check(self.path), self.written - self.hurt
        with killed_at(change, half):
            store.reopen(self.path, found)
            for block in self.prepare():
                store.write_block(self.path, self.layout, block, self.arrays(block))
        if change == 1:  # at the root, which tells readers of it: nothing was taken back
            return
        self.written = {name.removesuffix(".json") for name in LocalFolder(self.path / store.RECORDS).names()}
        self.written &= {block.name for block in self.blocks}
        assert before <= self.written
        self.hurt, self.complete = set(), False

    @precondition(lambda self: self.there and not self.torn)
    @rule()
    def seal(self) -> None:
        if self.missing():
            with pytest.raises(errors.IncompleteError, match="missing"):
                store.seal(self.path)
        else:
            assert store.seal(self.path)["blocks"] == len(self.blocks)
            self.complete = True

    @precondition(lambda self: self.complete)
    @rule()
    def remove(self) -> None:
        store.remove(self.path)
        self.there = self.complete = self.torn = False
        self.written, self.hurt, self.stale = set(), set(), set()

    @invariant()
    def a_reader_sees_what_is_there_or_is_told(self) -> None:
        if not self.there:
            assert not store.is_there(self.path)
            return
        assert store.is_complete(self.path) == self.complete
        if self.torn:
            return
        assert store.missing_blocks(self.path) == self.missing()
        if not self.complete:
            with pytest.raises(errors.IncompleteError):
                store.open_cube(self.path)
        cube = store.open_counts(self.path, allow_incomplete=True)
        for block in self.blocks:
            where = (slice(block.first, block.last), *block.window.slices)
            for name, variable in self.layout.variables.items():
                try:
                    found = cube[name][where].values
                except errors.IncompleteError:
                    assert block.name in self.hurt or block.name not in self.written
                    continue
                right = found == self.whole[name][where]
                if block.name in self.written - self.hurt:
                    assert right.all()
                # Until it is written again, a block holds what it held.
                earlier = [found == whole[name][where] for whole in self.past]
                assert np.logical_or.reduce([right, found == variable.fill, *earlier]).all()


@pytest.mark.parametrize("machines", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_the_store_is_its_model(machines: int) -> None:
    run_state_machine_as_test(Cube, settings=settings(max_examples=machines, stateful_step_count=50, deadline=None))


def _race(folder: Path, shape: tuple[int, int], days: int, tile: int, run: int, halo: int) -> None:
    """Write a cube by eight threads, and read it by eight with a margin around each block."""
    layout = store.Layout(
        grid(*shape), tuple(day(n) for n in range(days)), store.observation_variables(("red",)), tile, run
    )
    path, whole = folder / "a.zarr", np.random.default_rng(0).integers(-3000, 9000, (days, *shape)).astype("int16")
    pending, wrong = store.prepare(path, layout, {}), []

    def write(share: list[store.Block]) -> None:
        for block in share:
            part = whole[block.first : block.last, *block.window.slices]
            store.write_block(path, layout, block, {"red": part, "qa": part.astype("uint16")})

    def read(share: list[store.Block]) -> None:
        for block in share:
            near: Window = block.window.pad(halo).clip(shape)
            found = store.open_counts(path).red[(slice(block.first, block.last), *near.slices)].values
            wrong.append(int((found != whole[block.first : block.last, *near.slices]).sum()))

    for work in (write, read):
        threads = [threading.Thread(target=work, args=(pending[n::8],)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if work is write:
            store.seal(path)
    assert len(wrong) == len(pending)
    assert sum(wrong) == 0


@pytest.mark.parametrize("examples", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_no_cell_of_any_shape_is_lost_between_threads(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    sides = st.integers(1, 5)

    @settings(max_examples=examples, deadline=None)
    @given(sides, sides, st.integers(1, 9), st.integers(1, 3), st.integers(1, 9), st.integers(0, 40))
    def check(height: int, width: int, days: int, tile: int, run: int, halo: int) -> None:
        _race(tmp_path_factory.mktemp("race"), (height * 16, width * 16), days, tile * 16, run, halo)

    check()
