"""Freed memory: kept or given back, as the kernel counts pages that are touched anew."""

from __future__ import annotations

import subprocess
import sys

import pytest
from dask.delayed import delayed

from stfgan_xr import allocation, cluster
from tests.failing_tasks import pages

MEASURED = """
from stfgan_xr.allocation import give_back_freed, keep_freed
from tests.failing_tasks import pages
give_back_freed()
away = pages()
assert keep_freed()
pages()
print(away, pages())
"""
MADE = 20 * 8000
"""Pages of 4 KiB, nearly, that the arrays of :func:`pages` take."""
glibc = pytest.mark.skipif(not allocation.give_back_freed(), reason="only glibc can be told")


@glibc
def test_a_process_that_keeps_what_it_frees_touches_its_pages_once() -> None:
    found = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True)
    away, kept = (int(number) for number in found.stdout.split())
    assert away > MADE
    assert kept < MADE / 50


@glibc
def test_workers_keep_it_while_they_work_for_a_run() -> None:
    with cluster.connect(2) as client:
        alone = client.submit(pages).result()
        assert alone > MADE
        first, *later = cluster.run([delayed(pages)() for _ in range(8)], client)
    assert len(later) == 7
    assert min(first, *later) < MADE / 50


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_library", lambda: None)
    assert not allocation.keep_freed()
    assert not allocation.give_back_freed()
