"""STFGAN as a predictor: tiles give the whole image, days are independent, an untrained network is its anchor."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from stfgan_xr import checkpoint
from stfgan_xr.brackets import mirror
from stfgan_xr.errors import InputError
from stfgan_xr.grid import Halo, Window
from stfgan_xr.predictors import Bracket, CoarseWindow, Predictor
from stfgan_xr.predictors.objective import TrainedSTFGAN
from stfgan_xr.predictors.progress import Progress
from stfgan_xr.predictors.simple import Delta
from stfgan_xr.predictors.stages import AnchorName, Architecture, Network, Schedule
from stfgan_xr.predictors.stfgan import STFGAN, load
from tests.test_networks import shake

BANDS = ("red", "nir")
DAYS = (105, 110)


def random_checkpoint(folder: Path, architecture: Architecture, seed: int = 0, halo: Halo | None = None) -> Path:
    """Weights that do something everywhere; the corrections are kept small enough not to saturate."""
    torch.manual_seed(seed)
    network = Network(architecture)
    for generator in (network.first, network.second):
        for layer in (generator.fusion, generator.still):
            if layer is not None:
                torch.nn.init.normal_(layer.weight, std=0.03 if layer is generator.fusion else 0.3)
    shake(network, seed)
    tensors = {name: value.numpy() for name, value in network.state_dict().items() if value.is_floating_point()}
    config = architecture.to_config()
    if halo is not None:
        config["halo"] = {"fine": halo.fine, "coarse": halo.coarse}
    return checkpoint.save(folder / f"{architecture.schedule}-{seed}", tensors, config)


class Place:
    """Random images of a whole region, cut like :func:`stfgan_xr.brackets.intervals` cuts them."""

    def __init__(self, cells: tuple[int, int], ratio: int, seed: int = 0, low: float = 0.05, high: float = 0.6) -> None:
        self.ratio, self.cells = ratio, cells
        self.shape = (cells[0] * ratio, cells[1] * ratio)
        draw = np.random.default_rng(seed)
        self.fine = draw.uniform(low, high, (2, len(BANDS), *self.shape)).astype(np.float32)
        self.coarse = draw.uniform(low, high, (2 + len(DAYS), len(BANDS), *cells)).astype(np.float32)
        self.day = np.stack([draw.integers(95, 105, self.shape), draw.integers(111, 120, self.shape)]).astype(np.int32)
        self.resampled = draw.random((2, *self.shape)) < 0.5

    def cut(self, array: npt.NDArray[np.generic], window: Window) -> npt.NDArray[np.generic]:
        rows, columns = (
            mirror(window.top, window.bottom, array.shape[-2]),
            mirror(window.left, window.right, array.shape[-1]),
        )
        return np.ascontiguousarray(array[..., rows[:, None], columns])

    def bracket(self, window: Window, halo: Halo) -> tuple[Bracket, CoarseWindow]:
        fine, day = (self.cut(array, window.pad(halo.fine)) for array in (self.fine, self.day))
        coarse = self.cut(self.coarse, window.cells(self.ratio).pad(halo.coarse))
        first, last = DAYS[0] - halo.days, DAYS[-1] + halo.days
        every = np.repeat(coarse[2:3], last - first + 1, axis=0)
        every[DAYS[-1] - first :] = coarse[3]
        marks = self.cut(self.resampled, window.pad(halo.fine))
        bracket = Bracket(
            fine[0], fine[1], coarse[0], coarse[1], day[0], day[1], self.ratio, halo,
            resampled_before=marks[0], resampled_after=marks[1],
        )  # fmt: skip
        return bracket, CoarseWindow(DAYS, every, tuple(range(first, last + 1)))

    def predict(self, predictor: Predictor, window: Window) -> npt.NDArray[np.float32]:
        bracket, coarse = self.bracket(window, predictor.halo)
        return predictor.predict(predictor.prepare(bracket), coarse).mean

    def tiled(self, predictor: Predictor, size: int) -> npt.NDArray[np.float32]:
        out = np.full((len(DAYS), len(BANDS), *self.shape), np.nan, np.float32)
        for top in range(0, self.shape[0], size):
            for left in range(0, self.shape[1], size):
                tile = Window(top, top + size, left, left + size).clip(self.shape)
                out[..., *tile.slices] = self.predict(predictor, tile)
        return out

    @property
    def whole(self) -> Window:
        return Window(0, self.shape[0], 0, self.shape[1])


CASES = [
    ("same-grid", "progress", 16, (8, 5), (32, 64)),
    ("same-grid", "delta", 16, (8, 5), (48,)),
    ("same-grid", "none", 16, (5, 6), (48,)),
    ("same-grid", "progress", 7, (22, 32), (112,)),
    ("same-grid", "progress", 1, (70, 85), (32, 48)),
    ("progressive", "progress", 16, (6, 7), (32, 64)),
    ("progressive", "none", 7, (22, 32), (112,)),
    ("progressive", "progress", 1, (70, 85), (48,)),
]


@pytest.mark.parametrize(("schedule", "anchor", "ratio", "cells", "sizes"), CASES)
def test_tiles_give_the_whole_image(
    tmp_path: Path, schedule: Schedule, anchor: AnchorName, ratio: int, cells: tuple[int, int], sizes: tuple[int, ...]
) -> None:
    architecture = Architecture(BANDS, 4, schedule, anchor, ratio)
    predictor = STFGAN.open(random_checkpoint(tmp_path, architecture))
    place = Place(cells, ratio)
    whole = place.predict(predictor, place.whole)
    assert not np.allclose(whole, place.predict(Delta(BANDS), place.whole), atol=1e-3)
    for size in sizes:
        assert np.abs(place.tiled(predictor, size) - whole).max() <= 1e-5


def test_only_images_from_another_grid_are_mended(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4))
    still = TrainedSTFGAN(Architecture(BANDS, 4)).shrunk(checkpoint.load_tensors(path), 0)
    path = checkpoint.save(tmp_path / "still", still, checkpoint.read_config(path))
    predictor, place = STFGAN.open(path), Place((4, 4), 16)
    mended, anchor = (place.predict(method, place.whole) for method in (predictor, Progress(BANDS)))
    either = np.broadcast_to(place.resampled.any(axis=0), mended.shape)
    np.testing.assert_allclose(mended[~either], anchor[~either], atol=1e-6)
    assert (np.abs(mended - anchor)[either] > 1e-4).mean() > 0.9
    place.resampled[:] = False
    np.testing.assert_allclose(place.predict(predictor, place.whole), anchor, atol=1e-6)


def test_bands_in_another_order_than_the_weights_give_the_same(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4), halo=Halo(fine=80, coarse=5))
    checkpoint.save(path, checkpoint.load_tensors(path), checkpoint.read_config(path) | {"subsets": True})
    place, turned = Place((3, 3), 16), Place((3, 3), 16)
    turned.fine, turned.coarse = turned.fine[:, ::-1], turned.coarse[:, ::-1]
    one, other = place.predict(load(path, BANDS), place.whole), turned.predict(load(path, BANDS[::-1]), place.whole)
    assert np.abs(one - other[:, ::-1]).max() < 1e-5


def test_a_halo_too_small_is_seen(tmp_path: Path) -> None:
    architecture = Architecture(BANDS, 4)
    predictor = STFGAN.open(random_checkpoint(tmp_path, architecture, halo=Halo(fine=64, coarse=4)))
    assert predictor.halo == Halo(64, 4, 4)
    place = Place((4, 4), 16)
    whole = place.predict(predictor, place.whole)
    assert np.abs(place.tiled(predictor, 32) - whole).max() > 1e-5


@pytest.mark.parametrize("schedule", ["same-grid", "progressive"])
@pytest.mark.parametrize(("anchor", "method"), [("progress", Progress), ("delta", Delta)])
def test_an_untrained_network_is_its_anchor(
    tmp_path: Path, schedule: Schedule, anchor: AnchorName, method: type[Delta]
) -> None:
    torch.manual_seed(1)
    network = Network(Architecture(BANDS, 4, schedule, anchor))
    tensors = {name: value.numpy() for name, value in network.state_dict().items() if value.is_floating_point()}
    path = checkpoint.save(tmp_path / "untrained", tensors, network.architecture.to_config())
    place = Place((3, 4), 16, low=-0.2, high=1.3)
    expected = place.predict(method(BANDS), place.whole)
    assert np.abs(place.predict(STFGAN.open(path), place.whole) - expected).max() <= 1e-6


def test_days_in_batches_and_alone_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 4)))
    place = Place((2, 2), 16)
    together = place.predict(predictor, place.whole)
    monkeypatch.setattr("stfgan_xr.predictors.stfgan.DAY_BYTES", {"cpu": 1})
    assert np.abs(place.predict(predictor, place.whole) - together).max() <= 1e-6


def test_too_little_memory_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 4)))
    place = Place((2, 2), 16)
    together = place.predict(predictor, place.whole)
    run = STFGAN._run

    def scarce(self: STFGAN, prepared: object, coarse: CoarseWindow, days: tuple[int, ...]) -> object:
        if len(days) > 1:
            raise torch.OutOfMemoryError
        return run(self, prepared, coarse, days)  # type: ignore[arg-type]

    monkeypatch.setattr(STFGAN, "_run", scarce)
    assert np.abs(place.predict(predictor, place.whole) - together).max() <= 1e-6


def test_clipped_inputs_are_flagged_where_they_are(tmp_path: Path) -> None:
    predictor = STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 4)))
    place = Place((2, 3), 16)
    place.fine[0, 0, 3, 5] = 1.2
    place.coarse[3, 1, 1, 2] = -3.0
    bracket, coarse = place.bracket(place.whole, predictor.halo)
    clipped = predictor.predict(predictor.prepare(bracket), coarse).clipped
    assert clipped is not None
    assert clipped[0].sum() == 1
    assert clipped[0, 3, 5]
    assert clipped[1, 24:, 40:].all()
    assert not clipped[1, :8, 6:].any()


def test_it_travels_as_path_and_hash(tmp_path: Path) -> None:
    predictor = STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 64)))
    sent = pickle.dumps(predictor)
    assert len(sent) < 1000
    assert pickle.loads(sent) == predictor
    assert isinstance(predictor, Predictor)


def test_a_checkpoint_that_changed_is_refused(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4))
    sent = pickle.dumps(STFGAN.open(path))
    random_checkpoint(tmp_path, Architecture(BANDS, 4)).unlink()
    path.write_bytes(
        random_checkpoint(tmp_path / "other", Architecture(BANDS, 4), seed=0).read_bytes()[:-4] + b"\0\0\0\0"
    )
    from stfgan_xr.predictors import stfgan

    stfgan._network.cache_clear()
    stfgan._facts.cache_clear()
    predictor, place = pickle.loads(sent), Place((1, 1), 16)
    with pytest.raises(InputError, match="SHA-256"):
        place.predict(predictor, place.whole)


def test_halo_follows_the_ratio(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4, anchor="delta"), halo=Halo(fine=64, coarse=7))
    assert STFGAN.open(path).halo == Halo(64, 7)
    assert STFGAN.open(path, ratio=7).halo == Halo(64, 11)
    assert STFGAN.open(path, ratio=1).halo == Halo(64, 73)
    path = random_checkpoint(tmp_path / "progress", Architecture(BANDS, 4), halo=Halo(fine=64, coarse=7))
    assert STFGAN.open(path).halo == Halo(64, 7, 4)
    assert STFGAN.open(path, ratio=7).halo == Halo(64, 11, 4)
    place = Place((16, 16), 7)
    bracket, _ = place.bracket(place.whole, Halo(64, 16))
    with pytest.raises(InputError, match="16 fine pixels"):
        STFGAN.open(path).prepare(bracket)


def test_a_halo_that_the_anchor_needs_more_than_is_refused(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4), halo=Halo(fine=32, coarse=4))
    with pytest.raises(InputError, match="smaller than the 48 pixels and 3 cells"):
        STFGAN.open(path)


def test_weights_for_any_of_their_bands(tmp_path: Path) -> None:
    architecture = Architecture(("blue", *BANDS, "swir1"), 4, anchor="delta")
    plain = checkpoint.read_config(random_checkpoint(tmp_path, architecture))
    file = tmp_path / "same-grid-0.safetensors"
    with pytest.raises(InputError, match="trained for the bands"):
        load(file, BANDS)
    checkpoint.save(file, checkpoint.load_tensors(file), plain | {"subsets": True})
    place, swapped = Place((3, 3), 16), Place((3, 3), 16)
    swapped.fine, swapped.coarse = swapped.fine[:, ::-1], swapped.coarse[:, ::-1]
    predictor, other = load(file, BANDS), load(file, BANDS[::-1])
    assert pickle.loads(pickle.dumps(predictor)).bands == BANDS
    found = place.predict(predictor, place.whole)
    assert np.abs(found - swapped.predict(other, place.whole)[:, ::-1]).max() < 1e-6
    # Bands that the data does not have are as good as constant ones.
    full = STFGAN.open(file)
    for name in ("fine", "coarse"):
        image = np.full_like(getattr(place, name)[:, :1], 0.5)
        setattr(place, name, np.concatenate([image, getattr(place, name), image], axis=1))
    bracket, window = place.bracket(place.whole, full.halo)
    whole = full.predict(full.prepare(bracket), window).mean[:, 1:3]
    assert np.abs(whole - found).max() < 1e-5


def test_load_checks_the_bands(tmp_path: Path) -> None:
    path = random_checkpoint(tmp_path, Architecture(BANDS, 4))
    assert load(path, BANDS).bands == BANDS
    with pytest.raises(InputError, match="trained for the bands red, nir"):
        load(path, ("nir",))


def test_memory_counts_the_days_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = STFGAN.open(random_checkpoint(tmp_path, Architecture(BANDS, 4)), device="cpu")
    one, three = (predictor.memory(100, 200, days) for days in (1, 3))
    assert three - one == 2 * 8 * 100 * 200 * 4  # twice the widest layer in float32, a day
    monkeypatch.setattr("stfgan_xr.predictors.stfgan.DAY_BYTES", {"cpu": 1})
    assert predictor.memory(100, 200, 3) == one
