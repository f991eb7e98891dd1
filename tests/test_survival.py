"""Short versions of what benchmarks/survival.py and untrusted.py count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import faults, figures, footprints, survival, untrusted


@pytest.fixture(scope="module")
def plan(demo_world: Path, tmp_path_factory: pytest.TempPathFactory) -> survival.Plan:
    return survival.make_plan(demo_world, tmp_path_factory.mktemp("survival"))


def passed(figures: Iterator[figures.Figure]) -> None:
    found = list(figures)
    assert found
    assert all(figure.passed for figure in found), found


# What a forked run's semaphores are cleaned up with.
@pytest.mark.filterwarnings("ignore:resource_tracker")
def test_a_run_that_is_killed_anywhere_ends_as_one_that_was_not(plan: survival.Plan) -> None:
    found = survival.kills(plan, 2)
    assert found["kills"] == 2
    assert found["same"] == found["runs"] == 1
    assert found["reader_reads"] > 0
    assert not found["unreadable"] + found["torn"] + found["reader_wrong_pixels"] + found["reader_unreadable"]
    assert found["most_blocks_repeated_by_a_kill"] <= 1


def test_damaged_chunks_are_found_and_repaired(plan: survival.Plan) -> None:
    found = survival.damages(plan, 12, at_once=12)
    assert found == {"found": 12, "repaired_to_the_byte": 12, "named_without_cause": 0}


def test_a_limit_that_comes_down_in_the_middle_tears_nothing(plan: survival.Plan) -> None:
    found = survival.limits(plan, 1)
    assert found == {"exit_5": 1, "torn": 0, "unreadable": 0, "same": 1, "no_limit": 0}


@pytest.mark.slow
def test_whatever_happens_to_a_run(demo_world: Path, tmp_path: Path) -> None:
    counts = faults.Counts(kills=20, worker_kills=4, scheduler_kills=2, damages=40, limits=6)
    passed(faults.survives(demo_world, tmp_path, {9, 10, 11, 16}, counts))


@pytest.mark.slow
def test_peak_memory_is_what_was_predicted(tmp_path: Path) -> None:
    for row in footprints.measure(tmp_path):
        assert 0.7 <= row["peak"] / row["predicted"] <= 1.15, row


@pytest.mark.parametrize(
    ("step", "least"),
    [(untrusted.checkpoints, 30), (untrusted.areas, 30), (untrusted.tomls, 20), (untrusted.stores, 20)],
    ids=["checkpoints", "areas", "tomls", "stores"],
)
def test_files_of_others_are_refused_in_one_line(
    tmp_path: Path, step: Callable[[Path], untrusted.Counts], least: int
) -> None:
    found = step(tmp_path)
    assert found["refused"] >= least
    assert not found["taken"] + found["tracebacks"] + found.get("executed", 0)
