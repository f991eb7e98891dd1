"""What the table of accuracy says of cases, worked by hand."""

from __future__ import annotations

import pytest

from benchmarks.accuracy import METHODS, Case, summary


def test_each_case_is_judged_by_the_better_of_linear_and_delta() -> None:
    cases = [
        Case("a", "2020-01-01", 8, {"linear": 0.02, "delta": 0.01, "progress": 0.0102}, {}),
        Case("b", "2020-01-02", 16, {"linear": 0.03, "delta": 0.04, "progress": 0.0240},
             {"linear": 0.10, "delta": 0.08, "progress": 0.06}),
    ]  # fmt: skip
    rows = {row["method"]: row for row in summary(cases)}
    assert tuple(rows) == METHODS
    progress = rows["progress"]
    assert progress["bar"] == pytest.approx(0.02)
    assert progress["mean_ratio"] == pytest.approx((1.02 + 0.8) / 2)
    assert progress["worst_ratio"] == pytest.approx(1.02)
    assert progress["up_to_1.02"] == 1
    assert progress["abrupt_ratio"] == pytest.approx(0.75)
    assert rows["linear"]["worst_ratio"] == pytest.approx(2)
    assert rows["linear"]["up_to_1.02"] == 0.5
