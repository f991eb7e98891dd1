"""What the table of accuracy says of cases, worked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy import METHODS, Case, by_span, document, oracle, pick, summary
from stfgan_xr.grid import Halo
from stfgan_xr.predictors import Bracket


def made(place: str, span: int, rmse: dict[str, float], abrupt: dict[str, float] | None = None) -> Case:
    values = {name: {"rmse": error, "ssim": 0.9, "sam": 2.0, "ergas": 1.0} for name, error in rmse.items()}
    return Case(place, "2020-01-01", span, values, abrupt or {}, {})


CASES = [
    made("a", 8, {"linear": 0.02, "delta": 0.01, "progress": 0.0102, "stfgan": 0.009}),
    made(
        "b",
        16,
        {"linear": 0.03, "delta": 0.04, "progress": 0.0240, "stfgan": 0.033},
        {"linear": 0.10, "delta": 0.08, "progress": 0.06, "stfgan": 0.04},
    ),
]


def test_each_case_is_judged_by_the_better_of_linear_and_delta() -> None:
    rows = {row["method"]: row for row in summary(CASES)}
    assert tuple(rows) == METHODS
    progress = rows["progress"]
    assert progress["bar"] == pytest.approx(0.02)
    assert progress["of_means"] == pytest.approx(0.0171 / 0.02)
    assert progress["mean_ratio"] == pytest.approx((1.02 + 0.8) / 2)
    assert progress["worst_ratio"] == pytest.approx(1.02)
    assert progress["up_to_1.02"] == 1
    assert progress["abrupt_ratio"] == pytest.approx(0.75)
    assert progress["changed_ratio"] is None
    assert rows["linear"]["worst_ratio"] == pytest.approx(2)
    assert rows["linear"]["up_to_1.02"] == 0.5
    assert rows["stfgan"]["worst_ratio"] == pytest.approx(1.1)


def test_brackets_are_told_apart_by_their_length() -> None:
    short, long = by_span(CASES)
    assert (short["days"], short["cases"]) == ("4 to 8", 1)
    assert long["progress"] == pytest.approx(0.8)


def test_the_document_states_commands_weights_and_figures() -> None:
    groups = {"x": {"title": "Some worlds", "cases": [vars(case) for case in CASES]}}
    results: dict[str, Any] = {"command": "python -m x", "weights": {"sha256": "ab" * 32, "bands": ["nir"]}}
    text = document(results | {"groups": groups})
    assert "`python -m x`" in text
    assert "`abababababab`, of nir" in text
    assert "## Some worlds: 2 cases, B 0.0200" in text
    rows = [line for line in text.splitlines() if line.startswith("| progress")]
    assert rows == ["| progress | 0.0171 | 0.855 | 0.910 | 1.020 | 100% | 0.750 | 0.9000 | 2.000 | 1.000 |"]
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table[:6]}) == 1


def test_the_pick_is_the_nearest_of_three_in_each_pixel_over_all_bands() -> None:
    shape, draw = (2, 32, 32), np.random.default_rng(0)
    before, after, image, truth = draw.random((4, *shape), np.float32)
    bare, whole = Halo(fine=8, coarse=1), np.zeros((4, 4), np.int32)
    wide = [np.pad(end, [(0, 0), (8, 8), (8, 8)]) for end in (before, after)]
    coarse = np.zeros((2, 4, 4), np.float32)
    bracket = Bracket(*wide, coarse, coarse, whole, whole, 16, bare)
    found = pick(image, bracket, truth)
    for row, column in ((0, 0), (3, 17), (31, 31), (20, 5)):
        choices = [end[:, row, column] for end in (image, before, after)]
        errors = [float(((choice - truth[:, row, column]) ** 2).sum()) for choice in choices]
        np.testing.assert_array_equal(found[:, row, column], choices[errors.index(min(errors))])


def test_the_oracle_has_the_true_mean_of_every_cell_and_the_detail_of_the_image() -> None:
    rng = np.random.default_rng(0)
    detail, shift = rng.normal(0, 0.01, (2, 32, 48)).astype("float32"), rng.uniform(0, 0.3, (2, 4, 6))
    truth = (np.kron(shift, np.ones((8, 8))) + detail).astype("float32")
    where = rng.random((32, 48)) < 0.7

    def means(image: Any) -> Any:
        cells = np.where(where, image, 0).reshape(2, 4, 8, 6, 8).sum((2, 4))
        return cells / where.reshape(4, 8, 6, 8).sum((1, 3))

    found = oracle(detail, truth, where, 8)
    assert np.abs(means(found) - means(truth)).max() < 0.02
    assert np.abs(means(detail) - means(truth)).max() > 0.2
    assert np.abs(oracle(truth, truth, where, 8) - truth).max() < 1e-6
