"""Checkpoints: a round trip, and thirty bad ones that are refused without running anything."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError
from stfgan_xr.predictors.stages import Architecture, Network
from stfgan_xr.predictors.stfgan import STFGAN, restore, shapes
from stfgan_xr.predictors.uncertainty import CAUSES, Uncertainty

ARCHITECTURE = Architecture(("red", "nir"), 4)


def tensors(architecture: Architecture = ARCHITECTURE) -> dict[str, Any]:
    state = Network(architecture).state_dict()
    return {name: value.numpy() for name, value in state.items() if value.is_floating_point()}


def write(folder: Path, values: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Path:
    facts = ARCHITECTURE.to_config() if config is None else config
    return checkpoint.save(folder / "model.safetensors", tensors() if values is None else values, facts)


def uncertainty(bands: tuple[str, ...]) -> dict[str, Any]:
    count = len(bands)
    return Uncertainty(bands, ((1e-5,) * len(CAUSES),) * count, ((0.8, 2.0),) * count, (0.01,) * count).to_config()


def test_facts_are_added_and_the_weights_stay(tmp_path: Path) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    checkpoint.annotate(path, uncertainty=uncertainty(ARCHITECTURE.bands))
    assert path.read_bytes() == content
    assert checkpoint.read_config(path)["width"] == 4
    opened = STFGAN.open(path, subset=("nir",))
    assert opened.uncertainty is not None
    assert opened.uncertainty.to_config() == uncertainty(("nir",))


def test_round_trip(tmp_path: Path) -> None:
    values = tensors()
    path = write(tmp_path, values, ARCHITECTURE.to_config() | {"note": "kept"})
    for name in (path, path.with_suffix(".json"), path.with_suffix(""), tmp_path):
        read = checkpoint.load_tensors(name)
        assert read.keys() == values.keys()
        assert all(np.array_equal(read[key], values[key]) for key in values)
        assert checkpoint.read_config(name)["note"] == "kept"
    assert shapes(restore(path)) == {name: value.shape for name, value in values.items()}
    assert not list(tmp_path.glob(".*"))


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    values = tensors()
    read = checkpoint.load_tensors(write(tmp_path, {name: value.astype(np.float16) for name, value in values.items()}))
    assert {value.dtype for value in read.values()} == {np.dtype(np.float32)}
    for name, value in values.items():
        np.testing.assert_allclose(read[name], value, rtol=2**-11, atol=2**-24)  # half a unit in the last place


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    values = tensors()
    first = write(tmp_path / "a", values).read_bytes()
    assert write(tmp_path / "b", dict(reversed(values.items()))).read_bytes() == first


class Bomb:
    """Leaves a mark if anything unpickles it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def rehash(path: Path) -> None:
    import hashlib

    edit(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def edit(path: Path, **changes: Any) -> None:
    file = path.with_suffix(".json")
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value != "remove"}))


def replaced(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    rehash(path)


def header(path: Path, text: bytes, rest: bytes = b"") -> None:
    replaced(path, struct.pack("<Q", len(text)) + text + rest)


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


def resaved(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = tensors()
    change(values)
    write(path.parent, values)


BAD: dict[str, Callable[[Path], Any]] = {
    "no tensors": lambda p: p.unlink(),
    "no json": lambda p: p.with_suffix(".json").unlink(),
    "empty": lambda p: replaced(p, b""),
    "empty, hash kept": lambda p: p.write_bytes(b""),
    "pickle": lambda p: replaced(p, pickle.dumps(Bomb(p.parent / "mark"))),
    "pickle as json": lambda p: p.with_suffix(".json").write_bytes(pickle.dumps(Bomb(p.parent / "mark"))),
    "pickle after a header": lambda p: header(p, b"{}", pickle.dumps(Bomb(p.parent / "mark"))),
    "one bit": lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f"),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-100]),
    "cut, hash mended": lambda p: replaced(p, p.read_bytes()[:-100]),
    "bytes added": lambda p: replaced(p, p.read_bytes() + b"0000"),
    "header longer than the file": lambda p: replaced(p, struct.pack("<Q", 1 << 62) + b"{}"),
    "header not json": lambda p: header(p, b"{nonsense"),
    "header nested": lambda p: header(p, b'{"x":' * 5000 + b"1" + b"}" * 5000),
    "offsets outside": lambda p: header(p, entry([4], [0, 16])),
    "shape too large": lambda p: header(p, entry([1 << 40, 1 << 20], [0, 16]), b"0" * 16),
    "negative shape": lambda p: header(p, entry([-4], [0, 16]), b"0" * 16),
    "unknown type": lambda p: header(p, entry([4], [0, 16], "PY"), b"0" * 16),
    "bfloat16": lambda p: header(p, entry([4], [0, 8], "BF16"), b"0" * 8),
    "float64": lambda p: header(p, entry([2], [0, 16], "F64"), b"0" * 16),
    "tensor missing": lambda p: resaved(p, lambda v: v.pop(next(iter(v)))),
    "tensor too many": lambda p: resaved(p, lambda v: v.update(more=np.zeros(3, np.float32))),
    "wrong shape": lambda p: resaved(p, lambda v: v.update({"first.fusion.bias": np.zeros(5, np.float32)})),
    "not a number": lambda p: resaved(p, lambda v: v.update({"first.fusion.bias": np.full(3, np.nan, np.float32)})),
    "json not json": lambda p: p.with_suffix(".json").write_text("weights"),
    "json a list": lambda p: p.with_suffix(".json").write_text("[]"),
    "json nested": lambda p: p.with_suffix(".json").write_text("[" * 100_000),
    "json too large": lambda p: p.with_suffix(".json").write_bytes(b" " * (5 << 20)),
    "json not text": lambda p: p.with_suffix(".json").write_bytes(bytes(range(128, 256))),
    "another format": lambda p: edit(p, format=2),
    "no hash": lambda p: edit(p, sha256="remove"),
    "wrong hash": lambda p: edit(p, sha256="0" * 64),
    "another method": lambda p: edit(p, method="stfnet"),
    "no method": lambda p: edit(p, method="remove"),
    "no bands": lambda p: edit(p, bands=[]),
    "bands not texts": lambda p: edit(p, bands=[1, 2]),
    "more bands": lambda p: edit(p, bands=["red", "nir", "blue"]),
    "another width": lambda p: edit(p, width=8),
    "width not a number": lambda p: edit(p, width="4"),
    "width huge": lambda p: edit(p, width=10**9),
    "width a truth value": lambda p: edit(p, width=True),
    "schedule": lambda p: edit(p, schedule="other"),
    "anchor": lambda p: edit(p, anchor="other"),
    "ratio": lambda p: edit(p, ratio=0),
    "halo not numbers": lambda p: edit(p, halo={"fine": "x", "coarse": 1}),
    "halo odd": lambda p: edit(p, halo={"fine": 30, "coarse": 3}),
    "halo negative": lambda p: edit(p, halo={"fine": -64, "coarse": 3}),
    "halo a list": lambda p: edit(p, halo=[64, 3]),
    "uncertainty null": lambda p: edit(p, uncertainty=None),
    "uncertainty of another band": lambda p: edit(p, uncertainty=uncertainty(("red", "swir1"))),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_are_refused_and_run_nothing(tmp_path: Path, name: str) -> None:
    path = write(tmp_path)
    BAD[name](path)
    with pytest.raises(InputError) as caught:
        STFGAN.open(path)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "mark").exists()


def test_a_folder_with_two_checkpoints_asks_which(tmp_path: Path) -> None:
    write(tmp_path)
    checkpoint.save(tmp_path / "other", tensors(), ARCHITECTURE.to_config())
    with pytest.raises(InputError, match=r"model\.safetensors, other\.safetensors"):
        checkpoint.read_config(tmp_path)


def test_shipped_names_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"pipelines\.train"):
        checkpoint.shipped(("red",), method="another")


def test_what_is_shipped_is_for_all_of_its_bands_or_for_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_FOLDER", tmp_path)
    own = ARCHITECTURE.to_config()
    file = checkpoint.save(tmp_path / "stfgan.safetensors", tensors(), own)
    assert checkpoint.shipped(("red", "nir")) == checkpoint.shipped() == file
    with pytest.raises(InputError, match="trained for the bands red, nir"):
        checkpoint.shipped(("nir",))
    checkpoint.save(file, tensors(), own | {"subsets": True})
    assert checkpoint.shipped(("nir",)) == checkpoint.shipped(("nir", "red")) == file
    with pytest.raises(InputError, match="not blue"):
        checkpoint.shipped(("blue",))
