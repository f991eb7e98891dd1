"""Cubes on disk: what is written is read, unfinished and foreign cubes are refused, blocks are whole shards."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (its accessor is tested)
import xarray as xr

from stfgan_xr import errors, files, store
from stfgan_xr.files import Folder, as_folder
from stfgan_xr.grid import Window
from stfgan_xr.region import Region
from tests.conftest import CREDENTIALS
from tests.object_server import Objects, always
from tests.synthetic import Scene, corner, day, grid


def small_layout(height: int = 96, width: int = 80, days: int = 10, tile: int = 64, run: int = 4) -> store.Layout:
    variables = store.observation_variables(("red", "nir"))
    return store.Layout(grid(height, width), tuple(day(n) for n in range(days)), variables, tile, run)


def random_block(layout: store.Layout, block: store.Block, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = (block.last - block.first, *block.window.shape)
    return {n: rng.integers(0, 9000, shape).astype(v.dtype) for n, v in layout.variables.items()}


def write_all(path: store.Where, layout: store.Layout, region: Region | None = None) -> dict[str, np.ndarray]:
    rng, whole = np.random.default_rng(1), {}
    for name, variable in layout.variables.items():
        whole[name] = np.zeros((len(layout.days), *layout.shape), variable.dtype)
    for block in store.prepare(path, layout, {"seed": 1}, region=region):
        arrays = random_block(layout, block, rng)
        store.write_block(path, layout, block, arrays)
        for name, array in arrays.items():
            whole[name][block.first : block.last, *block.window.slices] = array
    return whole


def test_round_trip_of_counts_and_reflectance(folder: Folder) -> None:
    layout = small_layout()
    whole = write_all(folder / "a.zarr", layout)
    store.seal(folder / "a.zarr")
    counts, cube = store.open_counts(folder / "a.zarr"), store.open_cube(folder / "a.zarr")
    for name, values in whole.items():
        np.testing.assert_array_equal(counts[name].values, values)
    assert cube.red.dtype == np.float32
    np.testing.assert_allclose(cube.red.values, whole["red"] * 1e-4, atol=1e-7)
    assert cube.odc.geobox == layout.grid
    assert [str(t)[:10] for t in cube.time.values] == [d.isoformat() for d in layout.days]


def test_a_window_of_a_pickled_cube_reads_the_same(folder: Folder) -> None:
    whole = write_all(folder / "a.zarr", small_layout())
    store.seal(folder / "a.zarr")
    part = store.open_counts(folder / "a.zarr").isel(time=[1, 7], x=slice(3, 70))
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again.nir.values, whole["nir"][[1, 7], :, 3:70])


def test_plain_xarray_sees_values_mask_and_georeference(tmp_path: Path) -> None:
    whole = write_all(tmp_path / "a.zarr", small_layout())
    store.seal(tmp_path / "a.zarr")
    plain = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    np.testing.assert_allclose(plain.red.values, whole["red"] * 1e-4, atol=1e-7)
    assert plain.rio.crs.to_epsg() == 32650
    assert plain.red.encoding["_FillValue"] == -32768


def test_unwritten_pixels_are_nothing_never_zero(folder: Folder) -> None:
    layout, path = small_layout(), folder / "a.zarr"
    store.prepare(path, layout, {})
    cube = store.open_cube(path, allow_incomplete=True)
    assert np.isnan(cube.red.values).all()
    assert (cube.qa.values == 1).all()


def test_unfinished_cube_is_refused_and_says_what_is_missing(folder: Folder) -> None:
    layout, path = small_layout(), folder / "a.zarr"
    pending = store.prepare(path, layout, {})
    store.write_block(path, layout, pending[0], random_block(layout, pending[0], np.random.default_rng(0)))
    with pytest.raises(errors.IncompleteError, match=f"{len(pending) - 1} blocks are missing, first {pending[1].name}"):
        store.open_cube(path)
    with pytest.raises(errors.IncompleteError):
        store.seal(path)
    assert store.prepare(path, layout, {}) == pending[1:]


def test_other_parameters_are_refused_with_the_difference(folder: Folder) -> None:
    path = folder / "a.zarr"
    store.prepare(path, small_layout(), {"method": "delta"})
    with pytest.raises(errors.InputError, match='method was "delta", now "linear"'):
        store.prepare(path, small_layout(), {"method": "linear"})
    with pytest.raises(errors.InputError, match=r"days was .*\(10\), now .*\(9\)"):
        store.prepare(path, small_layout(days=9), {"method": "delta"})


def test_not_a_cube(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no such cube"):
        store.open_cube(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(errors.InputError, match="not a Zarr group"):
        store.open_cube(tmp_path / "empty.zarr")
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(errors.InputError, match="not a cube of stfgan_xr"):
        store.open_cube(tmp_path / "other.zarr")


def test_wrong_shape_or_type_never_reaches_the_store(folder: Folder) -> None:
    layout, path = small_layout(), folder / "a.zarr"
    block = store.prepare(path, layout, {})[0]
    arrays = random_block(layout, block, np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected int16"):
        store.write_block(path, layout, block, arrays | {"red": arrays["red"].astype("int32")})
    with pytest.raises(ValueError, match="expected int16"):
        store.write_block(path, layout, block, arrays | {"red": arrays["red"][:, :-1]})
    assert store.missing_blocks(path)[0] == block.name


def test_a_flipped_bit_is_an_error_not_a_pixel(tmp_path: Path) -> None:
    write_all(tmp_path / "a.zarr", small_layout())
    store.seal(tmp_path / "a.zarr")
    shard = next(p for p in sorted((tmp_path / "a.zarr" / "red" / "c").rglob("*")) if p.is_file())
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 3] ^= 4
    shard.write_bytes(bytes(raw))
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        store.open_counts(tmp_path / "a.zarr").red.values.sum()


def test_digest_depends_on_content_not_on_blocks(folder: Folder) -> None:
    scene = Scene(days=12)
    digests = []
    for name, tile, run in (("a", 64, 3), ("b", 96, 12)):
        path, bands = folder / f"{name}.zarr", ("red", "nir")
        layout = store.dataset_layout(scene.modis, scene.coarse, bands, tile=tile, run=run)
        for task in store.write_tasks(scene.modis.chunk(time=5), path, layout, store.prepare(path, layout, {})):
            task.compute(scheduler="synchronous")
        store.seal(path)
        digests.append(store.content_digest(path))
        np.testing.assert_array_equal(store.open_counts(path).nir.values, scene.modis.nir.values)
    assert digests[0] == digests[1]


def test_blocks_are_whole_shards() -> None:
    layout = small_layout(tile=64, run=4)
    for block in layout.blocks():
        days, rows, columns = layout.region(layout.variables["red"], block)
        assert days.start % 4 == rows.start % 64 == columns.start % 64 == 0
    assert sum(np.prod(b.window.shape) * (b.last - b.first) for b in layout.blocks()) == 96 * 80 * 10
    with pytest.raises(ValueError, match="whole cells"):
        Window(0, 20, 0, 16).cells(16)


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"b": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# ---------------------------------------------------------------- the area


def test_the_area_is_a_coordinate_true_inside(folder: Folder) -> None:
    path, layout = folder / "a.zarr", small_layout()
    whole = write_all(path, layout, corner(layout.grid))
    store.seal(path)
    expected = corner(layout.grid).inside(Window(0, 96, 0, 80))
    assert 0.1 < expected.mean() < 0.2
    for cube in (store.open_cube(path), store.open_counts(path)):
        assert cube.coords["aoi"].dtype == bool
        assert cube.coords["aoi"].dims == ("y", "x")
        np.testing.assert_array_equal(cube.aoi.values, expected)
        np.testing.assert_array_equal(cube.isel(x=slice(3, 9), y=[1, 2]).aoi, expected[[1, 2], 3:9])
        assert "aoi" not in cube.data_vars
    np.testing.assert_array_equal(cube.where(cube.aoi).red.values, np.where(expected, whole["red"], np.nan))
    np.testing.assert_array_equal(store.inside(path, Window(16, 48, 0, 32)), expected[16:48, :32])


def test_plain_xarray_sees_the_area_too(tmp_path: Path) -> None:
    layout = small_layout()
    write_all(tmp_path / "a.zarr", layout, corner(layout.grid))
    store.seal(tmp_path / "a.zarr")
    plain = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    assert plain.coords["aoi"].dtype == bool
    xr.testing.assert_equal(plain.aoi.compute(), store.open_cube(tmp_path / "a.zarr").aoi.load())
    assert plain.aoi.attrs["flag_meanings"] == "outside inside"


def test_the_area_is_part_of_what_makes_a_cube(tmp_path: Path) -> None:
    layout, digests = small_layout(), set()
    for name, region in (("a", corner(layout.grid)), ("b", corner(layout.grid, 48)), ("c", None)):
        write_all(tmp_path / f"{name}.zarr", layout, region)
        store.seal(tmp_path / f"{name}.zarr")
        digests.add(store.content_digest(tmp_path / f"{name}.zarr"))
    assert len(digests) == 3
    with pytest.raises(errors.InputError, match="area was"):
        store.prepare(tmp_path / "a.zarr", layout, {"seed": 1}, region=corner(layout.grid, 48))
    assert "aoi" not in store.open_cube(tmp_path / "c.zarr").coords
    assert store.inside(tmp_path / "c.zarr", Window(0, 16, 0, 16)) is None


def test_the_area_is_made_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, asked = small_layout(height=640, width=320, tile=64), []
    real = Region.inside
    monkeypatch.setattr(Region, "inside", lambda region, window: (asked.append(window), real(region, window))[1])
    store.prepare(tmp_path / "a.zarr", layout, {}, region=corner(layout.grid))
    assert [window.shape for window in asked] == [(256, 256), (256, 64), (256, 256), (256, 64), (128, 256), (128, 64)]
    # Written everywhere: a part that is gone is damage, not outside.
    parts = [p for p in (tmp_path / "a.zarr" / "aoi" / "c").rglob("*") if p.is_file()]
    assert len(parts) == 6
    parts[0].unlink()
    with pytest.raises(errors.IncompleteError, match=r"aoi/c/.* is gone"):
        store.open_cube(tmp_path / "a.zarr", allow_incomplete=True).aoi.load()


# ---------------------------------------------------------------- in an object store


def test_a_cube_in_an_object_store_is_that_of_a_disk_byte_by_byte(tmp_path: Path, objects: Objects) -> None:
    for path in (tmp_path / "a.zarr", as_folder("s3://bucket/a.zarr")):
        write_all(path, small_layout())
        store.seal(path)
    on_disk = {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert objects.stored == on_disk
    assert store.content_digest("s3://bucket/a.zarr") == store.content_digest(tmp_path / "a.zarr")


def test_fill_is_written_too(folder: Folder) -> None:
    layout = small_layout()
    for block in store.prepare(folder, layout, {}):
        shape = (block.last - block.first, *block.window.shape)
        store.write_block(
            folder, layout, block, {n: np.full(shape, v.fill, v.dtype) for n, v in layout.variables.items()}
        )
    store.seal(folder)
    assert np.isnan(store.open_cube(folder).red.values).all()


@pytest.mark.parametrize("files_written", [1, 3, 12])
def test_a_cube_whose_creation_ended_early_is_none_and_is_begun_anew(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, files_written: int
) -> None:
    path = folder / "a.zarr"
    real, left = type(folder).write, [files_written]

    def killed(self: Folder, key: str, content: bytes) -> None:
        real(self, key, content)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "write", killed)
        with pytest.raises(KeyboardInterrupt):
            store.prepare(path, small_layout(), {"seed": 0})
    with pytest.raises(errors.InputError, match="no such cube"):
        store.open_cube(path, allow_incomplete=True)
    assert not store.is_complete(path)
    write_all(path, small_layout(days=3))
    store.seal(path)
    write_all(folder / "b.zarr", small_layout(days=3))
    assert store.content_digest(path) == store.content_digest(folder / "b.zarr")
    assert store.check(path) == []


def test_a_removed_cube_is_gone(folder: Folder) -> None:
    write_all(folder / "a.zarr", small_layout())
    store.remove(folder / "a.zarr")
    store.remove(folder / "a.zarr")
    assert not (folder / "a.zarr").exists()


def test_a_cube_whose_removal_ended_early_is_none(objects: Objects) -> None:
    path = as_folder("s3://bucket/a.zarr")
    write_all(path, small_layout())
    store.seal(path)
    objects.fault = always("500", "POST", "")
    with pytest.raises(errors.ResourceError):
        store.remove(path)
    objects.fault = always("", "none", "")
    with pytest.raises(errors.InputError, match="only the rest of one that was being created or deleted"):
        store.open_cube(path)
    assert len(store.prepare(path, small_layout(), {})) > 0
    assert not [key for key in objects.stored if "/c/" in key and key.split("/")[1] in ("red", "nir", "qa")]


def test_what_others_put_there_is_not_touched(objects: Objects) -> None:
    objects.stored["a.zarr/.zgroup"] = b"{}"
    with pytest.raises(errors.InputError, match=r"s3://bucket/a\.zarr: not a Zarr group"):
        store.prepare("s3://bucket/a.zarr", small_layout(), {})
    assert objects.stored == {"a.zarr/.zgroup": b"{}"}


@pytest.mark.parametrize("fault", ["500", "403", "reset"])
def test_a_shard_that_cannot_be_written_is_an_error_and_no_record(objects: Objects, fault: str) -> None:
    layout = small_layout()
    block = store.prepare("s3://bucket/a.zarr", layout, {})[0]
    objects.fault = always(fault, "PUT", "/nir/c/")
    with pytest.raises(errors.ResourceError, match=r"cannot write s3://bucket/a\.zarr"):
        store.write_block("s3://bucket/a.zarr", layout, block, random_block(layout, block, np.random.default_rng(0)))
    assert store.missing_blocks("s3://bucket/a.zarr")[0] == block.name


@pytest.mark.parametrize("part", ["whole", "chunk"])
@pytest.mark.parametrize("fault", ["500", "403", "404", "reset", "cut"])
def test_a_shard_that_cannot_be_read_is_an_error_not_fill(objects: Objects, fault: str, part: str) -> None:
    whole = write_all("s3://bucket/a.zarr", small_layout())
    store.seal("s3://bucket/a.zarr")
    window = (slice(None), slice(5), slice(5)) if part == "chunk" else ...
    for cube in (store.open_cube("s3://bucket/a.zarr"), store.open_counts("s3://bucket/a.zarr")):
        objects.fault = always(fault, "GET", "/red/c/")
        with pytest.raises((errors.SourceError, errors.IncompleteError), match=r"s3://bucket/a\.zarr"):
            cube.red[window].load()
    objects.fault = always(fault, "GET", "/red/c/", 0 if fault in ("403", "404") else 1)
    np.testing.assert_array_equal(cube.red[window].values, whole["red"][window])
    objects.fault = always(fault, "GET", "/red/c/")
    with pytest.raises((errors.SourceError, errors.IncompleteError)):
        store.content_digest("s3://bucket/a.zarr")


@pytest.mark.parametrize("left", [None, b""], ids=["gone", "empty"])
def test_a_shard_that_is_gone_from_a_complete_cube_is_an_error_not_fill(tmp_path: Path, left: bytes | None) -> None:
    write_all(tmp_path / "a.zarr", small_layout())
    store.seal(tmp_path / "a.zarr")
    shard = next(p for p in (tmp_path / "a.zarr" / "red" / "c").rglob("*") if p.is_file())
    shard.unlink()
    if left is not None:
        shard.write_bytes(left)
    cube = store.open_cube(tmp_path / "a.zarr")
    with pytest.raises(errors.IncompleteError, match=r"a\.zarr is damaged: red/c/.* is gone"):
        cube.red.load()
    with pytest.raises(errors.IncompleteError):
        store.content_digest(tmp_path / "a.zarr")


def test_what_travels_to_workers_is_small_and_holds_no_secret(objects: Objects) -> None:
    layout = small_layout()
    write_all("s3://bucket/a.zarr", layout)
    store.seal("s3://bucket/a.zarr")
    cube = store.open_cube("s3://bucket/a.zarr")
    pickled = pickle.dumps(cube)
    assert len(pickled) < 20_000
    task = next(store.write_tasks(cube.chunk(), as_folder("s3://bucket/b.zarr"), layout, layout.blocks()))
    for text in (pickled, pickle.dumps(dict(task.__dask_graph__()))):
        assert not any(secret.encode() in text for secret in CREDENTIALS.values())
    files.open_store.cache_clear()
    objects.requests.clear()
    again = pickle.loads(pickled)
    assert objects.requests == []
    xr.testing.assert_identical(again.load(), cube.load())
