"""The benchmarks of the engine: that they count what they say. Their figures are not judged here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import zarr
from numcodecs.blosc import Blosc

from benchmarks import engine, plans

RESULTS = Path(engine.RESULTS).parent


def test_sharing_changes_no_pixel() -> None:
    found = engine.sharing(quick=True)
    assert found["sharing_difference"] <= 1e-5
    assert found["sharing_gain"] > 0


def test_the_codec_is_given_every_byte(tmp_path: Path) -> None:
    place = engine.Place.make(tmp_path, 64, 17)
    path = place.folder / "landsat.zarr"
    spent, size = engine.codec_seconds(path, ("red", "qa"))
    assert spent > 0
    assert size == 2 * 2 * 2 * 64 * 64  # two days, two variables of two bytes
    codec = zarr.open_array(path / "red", mode="r").compressors[0]
    values = np.arange(4096, dtype=np.int16).tobytes()
    assert Blosc().decode(codec._blosc_codec.encode(values)) == values  # type: ignore[attr-defined]


def test_a_plan_has_a_task_for_each_block() -> None:
    side = 2 * plans.TILE * 30 / 1000
    found = plans._measure(side**2 + 1, 40)
    assert found["blocks"] == 2 * 2 * 2
    assert found["tasks_a_block"] == 1


def test_the_page_is_that_of_the_figures() -> None:
    figures, planned = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("engine", "plans"))
    assert engine.PAGE.read_text() == engine.page(figures, planned)
    assert "not measured" in engine.page({"machine": figures["machine"]}, {})
