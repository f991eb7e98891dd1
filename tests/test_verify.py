"""What is missing or damaged of a cube is found, and made again as it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import fuse, verify
from pipelines.imagery import Request, make_request
from stfgan_xr import errors, store
from stfgan_xr.files import Folder, LocalFolder
from stfgan_xr.predictors.methods import make
from tests.object_server import Objects, always
from tests.synthetic import corner
from tests.test_commands import arguments, catalog, run  # noqa: F401
from tests.test_store import random_block, small_layout, write_all


def sealed(path: Folder, **shape: int) -> dict[str, np.ndarray]:
    layout = small_layout(**shape)
    whole = write_all(path, layout, corner(layout.grid))
    store.seal(path)
    return whole


def keys(path: Folder) -> list[str]:
    """All files of a cube."""
    if isinstance(path, LocalFolder):
        return sorted(str(p.relative_to(path.path)) for p in path.path.rglob("*") if p.is_file())
    return sorted(str(item["path"]) for batch in path.store.list() for item in batch)  # type: ignore[attr-defined]


def write_again(path: Folder) -> None:
    layout, rng = small_layout(), np.random.default_rng(1)
    pending = store.prepare(path, layout, {"seed": 1}, region=corner(layout.grid))
    for block in layout.blocks():
        arrays = random_block(layout, block, rng)
        if block in pending:
            store.write_block(path, layout, block, arrays)


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 16
    return bytes(changed)


def test_a_whole_cube_has_no_damage(folder: Folder) -> None:
    path = folder / "a.zarr"
    sealed(path)
    assert store.check(path) == []
    store.reopen(path, [])
    write_again(path)
    assert store.seal(path)["status"] == "complete"
    assert store.check(path) == []


@pytest.mark.parametrize("how", ["deleted", "empty", "cut", "flipped", "another's"])
def test_every_file_of_a_cube_but_its_root_is_watched(tmp_path: Path, how: str) -> None:
    path = LocalFolder(tmp_path / "a.zarr")
    sealed(path, height=64, width=64, days=2, run=1)
    for number, key in enumerate(keys(path)):
        if key == "zarr.json":
            continue
        content = path.read(key)
        assert content
        if how == "deleted":
            path.delete_file(key)
        else:
            changed = {
                "empty": b"", "cut": content[: len(content) // 2], "flipped": flipped(content, number * 37 % len(content)),
                "another's": path.read("qa/zarr.json" if key != "qa/zarr.json" else "red/zarr.json") or b"",
            }[how]  # fmt: skip
            path.write(key, changed)
        found = store.check(path)
        # A variable without its metadata cannot be read at all; fixed.json is a list of others.
        assert found, key
        if "/c/" in key or key.startswith("blocks/t"):
            assert [damage.key for damage in found] == [key], found
        elif key != "blocks/fixed.json":
            assert key in {damage.key for damage in found}
        path.write(key, content)
    assert store.check(path) == []


def test_what_is_damaged_is_written_again_and_nothing_else(folder: Folder) -> None:
    path = folder / "a.zarr"
    sealed(path)
    before = {key: path.read(key) for key in keys(path)}
    shards = [key for key in before if "/c/" in key and key.split("/")[0] in ("red", "nir", "qa")]
    path.delete_file(shards[0])
    path.write(shards[7], flipped(before[shards[7]] or b"", 30))
    path.write("x/c/0", b"")
    path.delete_file("aoi/c/0/0")
    path.write("y/zarr.json", b"{}")
    damages = store.check(path)
    assert {shards[0], shards[7], "x/c/0", "aoi/c/0/0", "y/zarr.json"} == {damage.key for damage in damages}
    store.reopen(path, damages)
    with pytest.raises(errors.IncompleteError, match="is unfinished"):
        store.open_cube(path)
    write_again(path)
    store.seal(path)
    assert {key: path.read(key) for key in keys(path)} == before


def test_blocks_that_become_others_are_not_sealed(folder: Folder) -> None:
    path, layout = folder / "a.zarr", small_layout()
    sealed(path)
    first = next(iter(layout.blocks()))
    path.delete_file("red/c/0/0/0")
    store.reopen(path, store.check(path))
    store.prepare(path, layout, {"seed": 1}, region=corner(layout.grid))
    store.write_block(path, layout, first, random_block(layout, first, np.random.default_rng(9)))
    with pytest.raises(errors.IncompleteError, match="are not those that were there"):
        store.seal(path)
    assert not store.is_complete(path)


def test_blocks_of_another_cube_are_found_out_by_the_seal(tmp_path: Path) -> None:
    path, layout = LocalFolder(tmp_path / "a.zarr"), small_layout()
    sealed(path)
    block = next(iter(layout.blocks()))
    store.write_block(path, layout, block, random_block(layout, block, np.random.default_rng(9)))
    assert {damage.block for damage in store.check(path)} == {block.name for block in layout.blocks()}


def test_what_is_not_written_yet_is_missing(folder: Folder) -> None:
    layout, path = small_layout(), folder / "a.zarr"
    pending = store.prepare(path, layout, {})
    store.write_block(path, layout, pending[0], random_block(layout, pending[0], np.random.default_rng(0)))
    found = store.check(path)
    assert [(damage.block, damage.why) for damage in found] == [(block.name, "missing") for block in pending[1:]]


def test_a_damaged_shard_does_not_stop_its_block_from_being_written(folder: Folder) -> None:
    path, layout = folder / "a.zarr", small_layout()
    pending = store.prepare(path, layout, {})
    path.write("red/c/0/0/0", b"rubbish of a disk")
    arrays = random_block(layout, pending[0], np.random.default_rng(0))
    store.write_block(path, layout, pending[0], arrays)
    assert [damage.block for damage in store.check(path)] == [block.name for block in pending[1:]]


def test_a_store_that_fails_is_no_damage(objects: Objects) -> None:
    path = store_path = "s3://bucket/a.zarr"
    write_all(path, small_layout())
    store.seal(path)
    objects.fault = always("503", "GET", "/red/c/")
    with pytest.raises(errors.SourceError):
        store.check(store_path)


def test_what_a_kill_left_half_written_is_swept(tmp_path: Path) -> None:
    path, layout = tmp_path / "a.zarr", small_layout()
    store.prepare(path, layout, {})
    left = ["red/c/0/0/0.0123456789abcdef0123456789abcdef.partial", "blocks/.t0.json.77-140.partial"]
    for name in left:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"1")
    (tmp_path / "a.zarr.partial-4711").mkdir()
    (tmp_path / "b.zarr.partial-4711").mkdir()
    (path / "of.partial").write_bytes(b"another's")
    store.prepare(path, layout, {})
    assert not any((path / name).exists() for name in left)
    assert not (tmp_path / "a.zarr.partial-4711").exists()
    assert (tmp_path / "b.zarr.partial-4711").exists()
    assert (path / "of.partial").exists()


# ---------------------------------------------------------------- the command


def test_a_run_is_verified_and_repaired(
    finished: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    catalog: str,  # noqa: F811
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    code, said, _ = run(str(out), command=verify.command)
    assert code == 0
    assert said.count("all as recorded") == 3
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "fused.zarr/red/c/0/0/0").unlink()
    hurt = next(path for path in (out / "landsat.zarr/nir/c").rglob("*") if path.is_file())
    hurt.write_bytes(flipped(hurt.read_bytes(), 999))
    next(path for path in (out / "modis.zarr").glob("blocks/t*.json")).write_bytes(b"{")
    (out / "modis.zarr/time/c/0").unlink()
    code, said, err = run(str(out), command=verify.command)
    assert code == 6
    assert "fused.zarr/red/c/0/0/0: missing" in said
    assert f"{hurt.relative_to(out)}: cannot be read" in said
    assert "4 files are missing or damaged" in err
    code, _, err = run(str(out), "--repair", command=verify.command)
    assert code == 0, err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    code, said, _ = run(*arguments(catalog, out))
    assert "nothing to do" in said


def test_a_cube_without_its_root_is_made_again_whole(
    finished: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (out / "fused.zarr/zarr.json").write_bytes(b'{"zarr_format": 3')
    code, said, _ = run(str(out), "--repair", command=verify.command)
    assert code == 0
    assert "fused.zarr/zarr.json: missing or damaged" in said
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "not a run folder"), (b"{", "is damaged"), (b"{}", "is damaged"), (b'{"request": 1}', "is damaged")],
)
def test_what_is_no_run_is_refused(
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    content: bytes | None,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    code, _, err = run(str(tmp_path), command=verify.command)
    assert code == 2
    assert said in err


def test_damage_of_an_unfinished_run_is_taken_back_for_its_own_command(
    finished: Path,
    catalog: str,  # noqa: F811
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, hook = tmp_path / "run", sys.unraisablehook
    real = fuse.write_fused

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse, "write_fused", killed)
    assert run(*arguments(catalog, out))[0] == 130
    monkeypatch.setattr(fuse, "write_fused", real)
    next(path for path in (out / "landsat.zarr/red/c").rglob("*") if path.is_file()).write_bytes(b"?")
    code, said, err = run(str(out), "--repair", command=verify.command)
    assert code == 6
    assert "landsat.zarr/red/c/" in said
    assert "run its own command again" in err
    assert run(*arguments(catalog, out))[0] == 0
    assert json.loads((out / "run.json").read_text())["status"] == "complete"
    assert [store.content_digest(out / name) for name in fuse.CUBES] == [
        store.content_digest(finished / name) for name in fuse.CUBES
    ]
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("spread", [False, True])
def test_a_run_is_repaired_with_the_options_it_was_made_with(tmp_path: Path, spread: bool) -> None:
    folder, request = (
        LocalFolder(tmp_path),
        make_request("2020-03-01/2020-03-08", None, "demo", None, None, "red,nir", None, 8),
    )
    predictor = make("delta", request.bands)
    made = fuse.Run(folder, request, "delta", predictor, keep_observed=False, tile=256, spread=spread)
    document = made.document(cubes={"fused.zarr": {"layout": {"tile": 256}}})
    again = verify._recorded_run(folder, document, Request.recorded(document, None), 16)
    assert again.identity() == made.identity()
    assert (again.spread, again.tile) == (spread, 256)
