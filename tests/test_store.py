"""Cubes on disk: what is written is read, unfinished and foreign cubes are refused, blocks are whole shards."""

from __future__ import annotations

import json
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401  (its accessor is tested)
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stfgan_xr import errors, files, store
from stfgan_xr.grid import Window
from tests.synthetic import Scene, day, grid


def small_layout(height: int = 96, width: int = 80, days: int = 10, tile: int = 64, run: int = 4) -> store.Layout:
    variables = store.observation_variables(("red", "nir"))
    return store.Layout(grid(height, width), tuple(day(n) for n in range(days)), variables, tile, run)


def random_block(layout: store.Layout, block: store.Block, rng: np.random.Generator) -> dict[str, np.ndarray]:
    shape = (block.last - block.first, *block.window.shape)
    return {n: rng.integers(0, 9000, shape).astype(v.dtype) for n, v in layout.variables.items()}


def write_all(path: Path, layout: store.Layout) -> dict[str, np.ndarray]:
    rng, whole = np.random.default_rng(1), {}
    for name, variable in layout.variables.items():
        whole[name] = np.zeros((len(layout.days), *layout.shape), variable.dtype)
    for block in store.prepare(path, layout, {"seed": 1}):
        arrays = random_block(layout, block, rng)
        store.write_block(path, layout, block, arrays)
        for name, array in arrays.items():
            whole[name][block.first : block.last, *block.window.slices] = array
    return whole


def test_round_trip_of_counts_and_reflectance(tmp_path: Path) -> None:
    layout = small_layout()
    whole = write_all(tmp_path / "a.zarr", layout)
    store.seal(tmp_path / "a.zarr")
    counts, cube = store.open_counts(tmp_path / "a.zarr"), store.open_cube(tmp_path / "a.zarr")
    for name, values in whole.items():
        np.testing.assert_array_equal(counts[name].values, values)
    assert cube.red.dtype == np.float32
    np.testing.assert_allclose(cube.red.values, whole["red"] * 1e-4, atol=1e-7)
    assert cube.odc.geobox == layout.grid
    assert [str(t)[:10] for t in cube.time.values] == [d.isoformat() for d in layout.days]


def test_a_window_of_a_pickled_cube_reads_the_same(tmp_path: Path) -> None:
    whole = write_all(tmp_path / "a.zarr", small_layout())
    store.seal(tmp_path / "a.zarr")
    part = store.open_counts(tmp_path / "a.zarr").isel(time=[1, 7], x=slice(3, 70))
    again = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(again.nir.values, whole["nir"][[1, 7], :, 3:70])


def test_plain_xarray_sees_values_mask_and_georeference(tmp_path: Path) -> None:
    whole = write_all(tmp_path / "a.zarr", small_layout())
    store.seal(tmp_path / "a.zarr")
    plain = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    np.testing.assert_allclose(plain.red.values, whole["red"] * 1e-4, atol=1e-7)
    assert plain.rio.crs.to_epsg() == 32650
    assert plain.red.encoding["_FillValue"] == -32768


def test_unwritten_pixels_are_nothing_never_zero(tmp_path: Path) -> None:
    layout, path = small_layout(), tmp_path / "a.zarr"
    store.prepare(path, layout, {})
    cube = store.open_cube(path, allow_incomplete=True)
    assert np.isnan(cube.red.values).all()
    assert (cube.qa.values == 1).all()


def test_unfinished_cube_is_refused_and_says_what_is_missing(tmp_path: Path) -> None:
    layout, path = small_layout(), tmp_path / "a.zarr"
    pending = store.prepare(path, layout, {})
    store.write_block(path, layout, pending[0], random_block(layout, pending[0], np.random.default_rng(0)))
    with pytest.raises(errors.IncompleteError, match=f"{len(pending) - 1} blocks are missing, first {pending[1].name}"):
        store.open_cube(path)
    with pytest.raises(errors.IncompleteError):
        store.seal(path)
    assert store.prepare(path, layout, {}) == pending[1:]


def test_other_parameters_are_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    store.prepare(path, small_layout(), {"method": "delta"})
    with pytest.raises(errors.InputError, match='method was "delta", now "linear"'):
        store.prepare(path, small_layout(), {"method": "linear"})
    with pytest.raises(errors.InputError, match=r"days was .*\(10\), now .*\(11\)"):
        store.prepare(path, small_layout(days=11), {"method": "delta"})


def test_not_a_cube(tmp_path: Path) -> None:
    with pytest.raises(errors.InputError, match="no such cube"):
        store.open_cube(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(errors.InputError, match="not a Zarr group"):
        store.open_cube(tmp_path / "empty.zarr")
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "other.zarr", consolidated=False)
    with pytest.raises(errors.InputError, match="not a cube of stfgan_xr"):
        store.open_cube(tmp_path / "other.zarr")


def test_wrong_shape_or_type_never_reaches_the_store(tmp_path: Path) -> None:
    layout, path = small_layout(), tmp_path / "a.zarr"
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


def test_digest_depends_on_content_not_on_blocks(tmp_path: Path) -> None:
    scene = Scene(days=12)
    digests = []
    for name, tile, run in (("a", 64, 3), ("b", 96, 12)):
        path, bands = tmp_path / f"{name}.zarr", ("red", "nir")
        layout = store.dataset_layout(scene.modis, scene.coarse, bands, tile=tile, run=run)
        for task in store.write_tasks(scene.modis.chunk(time=5), path, layout, store.prepare(path, layout, {})):
            task.compute(scheduler="synchronous")
        store.seal(path)
        digests.append(store.content_digest(path))
        np.testing.assert_array_equal(store.open_counts(path).nir.values, scene.modis.nir.values)
    assert digests[0] == digests[1]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    days=st.integers(1, 9),
    tile=st.integers(1, 3),
    run=st.integers(1, 9),
)
def test_blocks_written_by_eight_threads_lose_no_cell(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, days: int, tile: int, run: int
) -> None:
    layout = small_layout(height * 16, width * 16, days, tile * 16, run)
    path, rng = tmp_path_factory.mktemp("race") / "a.zarr", np.random.default_rng(0)
    pending = store.prepare(path, layout, {})
    whole = rng.integers(-3000, 9000, (days, *layout.shape)).astype("int16")

    def work(share: list[store.Block]) -> None:
        for block in share:
            part = whole[block.first : block.last, *block.window.slices]
            store.write_block(path, layout, block, {"red": part, "nir": part, "qa": part.astype("uint16")})

    threads = [threading.Thread(target=work, args=(pending[n::8],)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.seal(path)
    np.testing.assert_array_equal(store.open_counts(path).red.values, whole)


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
