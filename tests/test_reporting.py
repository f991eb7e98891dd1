"""The document of a table: what it says, that parsers read it, and that it is the same each time."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from pipelines import evaluate
from pipelines.console import main
from stfgan_xr import errors, metrics, reporting, store
from stfgan_xr.evaluation import Result, Row, Triplet
from stfgan_xr.metrics import Scores
from tests.synthetic import Scene, day

VOID = {"meta"}


class Page(HTMLParser):
    """Tables of a page by caption, and its headings; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        self.text = ""
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "caption":
            self.tables[self.text] = self.rows
        if tag in ("td", "th"):
            self.rows[-1].append(self.text)
        if tag == "h2":
            self.headings.append(self.text)

    def handle_data(self, data: str) -> None:
        self.text += data


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Tables of a Markdown document by the bold line before them."""
    found: dict[str, list[list[str]]] = {}
    caption = ""
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open":
            found[caption] = rows = []
        elif token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            plain = "".join(part.content for part in token.children or ())
            if token.level == 1:
                caption = plain
            else:
                rows[-1].append(plain)
    return found


def table() -> dict[str, Result]:
    case = Triplet(day(3), day(11), day(19))
    bands = {"rmse": (0.01, 0.03), "bias": (-0.00001, 0.02)}
    part = Scores(rmse=0.05, skill=0.25, pixels=7, by_band={"rmse": (0.04, 0.06)})
    good = Scores(rmse=0.02, bias=0.00999, psnr=34.567, skill=0.5, pixels=100, by_band=bands)
    poor = Scores(rmse=0.04, bias=-0.1, psnr=None, skill=0.0, pixels=100, by_band={"rmse": (0.05, 0.03)})
    return {
        name: Result((Row(case.target, case, found, missing=0.125, classes={"abrupt": part}),), ("red", "n<i|r_1"))
        for name, found in (("delta", good), ("linear", poor))
    }


def facts(**more: object) -> reporting.Facts:
    acquired = [day(n) for n in (3, 5, 11, 12, 19, 27)]
    given = {
        "command": "python -m pipelines.evaluate 'a <b>' --report scores.html", "protocol": ("How <it> was done.",),
        "cases": reporting.cases(table(), acquired), "classes": {"abrupt": "|F3 - F1| > 0.1"}, "ratio": 16,
        "cubes": {"landsat": "ab" * 32}, "weights": {"stfgan": "cd" * 32}, "seams": {"delta": 1.04, "observations": 1},
        "versions": {"stfgan_xr": "0.1.0"},
    }  # fmt: skip
    return reporting.Facts(**(given | more))  # type: ignore[arg-type]


def parsed(suffix: str, **more: object) -> dict[str, list[list[str]]]:
    text = reporting.RENDERERS[suffix](reporting.sections(table(), facts(**more)))
    return Page(text).tables if suffix == ".html" else markdown_tables(text)


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_tables_hold_the_numbers(suffix: str) -> None:
    found = parsed(suffix)
    assert found["Means over the cases"] == [
        ["score", "delta", "linear"],
        ["RMSE", "0.0200", "0.0400"],
        ["Bias", "0.0100", "-0.1000"],
        ["PSNR", "34.57", "-"],
        ["Skill", "0.5000", "0.0000"],
        ["Share without a value", "0.1250", "0.1250"],
    ]
    assert found["Means over the cases, of each band"] == [
        ["score", "band", "delta", "linear"],
        ["RMSE", "red", "0.0100", "0.0500"],
        ["RMSE", "n<i|r_1", "0.0300", "0.0300"],
        ["Bias", "red", "0.0000", "-"],
        ["Bias", "n<i|r_1", "0.0200", "-"],
    ]
    assert found["Classes, and their pixels in all cases"][1] == ["abrupt", "|F3 - F1| > 0.1", "7"]
    assert found["Means over the cases, of each class"][1:] == [
        ["RMSE", "abrupt", "0.0500", "0.0500"],
        ["Skill", "abrupt", "0.2500", "0.2500"],
    ]
    assert found["Days of the fine series"][1] == [
        "2020-01-04",
        "2020-01-12",
        "2020-01-20",
        "2020-01-06, 2020-01-13",
        "100",
    ]
    assert found["Scores of each case"][1] == ["RMSE", "2020-01-12", "0.0200", "0.0400"]
    assert found["Bending across the borders of tiles"][1:] == [["delta", "1.0400"], ["observations", "1.0000"]]
    assert found["Cubes"][1] == ["landsat", "ab" * 32]
    assert found["Weights"][1] == ["stfgan", "cd" * 32]
    assert [row[0] for row in found["Scores"][1:]] == [score.label for score in reporting.SCORES.values()]


@pytest.mark.parametrize("suffix", [".html", ".md"])
def test_what_is_not_known_has_no_table(suffix: str) -> None:
    found = parsed(suffix, seams={}, weights={})
    assert {"Weights", "Bending across the borders of tiles"} & found.keys() == set()
    rows = parsed(suffix)
    assert all(len(row) == len(of[0]) for of in rows.values() for row in of)


def test_every_score_has_a_convention() -> None:
    assert reporting.SCORES.keys() == set(metrics.NAMES)


def test_the_page_needs_nothing_else() -> None:
    text = reporting.to_html(reporting.sections(table(), facts()))
    page = Page(text)
    assert page.headings == [section.title for section in reporting.sections(table(), facts())]
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "&#x27;a &lt;b&gt;&#x27;" in text


def test_two_cases_of_one_target_keep_their_names() -> None:
    first = table()["delta"].rows[0]
    wider = Row(first.day, Triplet(day(3), day(11), day(27)), first.scores)
    both = {"delta": Result((first, wider), ("red", "nir"))}
    cases = reporting.cases(both, [])
    rows = reporting._cases(both, facts(cases=cases)).grids[1].rows
    assert [row[1] for row in rows[:2]] == ["2020-01-04/2020-01-12/2020-01-20", "2020-01-04/2020-01-12/2020-01-28"]


def test_a_case_against_the_truth_lies_between_the_days_nearest_to_it() -> None:
    against = {"delta": Result((Row(day(12), None, Scores()),))}
    (case,) = reporting.cases(against, [day(3), day(12), day(19)])
    assert (case.before, case.after, case.unused) == (day(3), day(19), ())
    (case,) = reporting.cases(against, [day(3)])
    assert (case.before, case.after) == (day(3), None)


@pytest.mark.parametrize("name", ["scores.pdf", "scores"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_computed(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.InputError, match=r"scores"):
        reporting.renderer(tmp_path / name)


def test_the_digest_is_that_of_the_values() -> None:
    first, same, other = Scene(), Scene(), Scene(seed=1)
    assert reporting.digest(first.landsat) == reporting.digest(same.landsat) != reporting.digest(other.landsat)
    later = first.landsat.assign_coords(time=first.landsat.time + np.timedelta64(1, "D"))
    moved = first.landsat.assign_coords(x=first.landsat.x + 30)
    assert len({reporting.digest(cube) for cube in (first.landsat, later, moved)}) == 3


def evaluated(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main(evaluate.command)
    assert not stop.value.code


def test_the_command_writes_the_same_bytes_twice_and_fits_eighty_columns(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(finished), "--method", "linear", "--method", "delta", "--report", str(tmp_path / "scores.html"))
    evaluated(monkeypatch, *arguments)
    shown, first = capsys.readouterr().out, (tmp_path / "scores.html").read_bytes()
    evaluated(monkeypatch, *arguments)
    assert (tmp_path / "scores.html").read_bytes() == first
    assert max(map(len, shown.replace(str(tmp_path), "").splitlines())) <= 80
    found = Page(first.decode()).tables
    classes = {name: int(pixels) for name, _, pixels in found["Classes, and their pixels in all cases"][1:]}
    whole = sum(int(row[-1]) for row in found["Days of the fine series"][1:])
    assert classes["unchanged"] + classes["phenology"] + classes["abrupt"] == whole > 0
    assert classes["phenology"] > 0
    sealed = {name: store.identity_of(finished / f"{name}.zarr")["sha256"] for name in ("landsat", "modis", "fused")}
    assert dict(map(tuple, found["Cubes"][1:])) == sealed  # type: ignore[arg-type]


def test_some_bands_of_a_run_are_scored(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "scores.md"
    methods = ("--method", "delta", "--method", "linear")
    evaluated(monkeypatch, str(finished), *methods, "--bands", "nir,red", "--report", str(report))
    rows = markdown_tables(report.read_text())["Means over the cases, of each band"]
    assert [row[1] for row in rows[1:5]] == ["red", "nir", "red", "nir"]


def test_methods_are_run_as_the_run_was(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, target = tmp_path / "run", tmp_path / "scores.json"
    shutil.copytree(finished, run)
    document = json.loads((run / "run.json").read_text())
    document["request"]["keep_observed"] = False
    (run / "run.json").write_text(json.dumps(document))
    evaluated(monkeypatch, str(run), "--method", "linear", "--json", str(target))
    found = json.loads(target.read_text())
    pixels = [row["pixels"] for row in found["linear"]["rows"]]
    assert found["linear"]["classes"]["predicted"]["pixels"] == sum(pixels)
    assert "like any other" in found["report"]["protocol"][0]


def test_cases_of_real_pairs_as_markdown(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = "2020-10-02/2020-10-12/2020-10-22"
    pairs = str(shared_data / "pairs" / "salton_sea_nir" / "pairs.toml")
    report = tmp_path / "scores.md"
    evaluated(monkeypatch, "--pairs", pairs, "--triplets", case, "--method", "delta", "--report", str(report))
    found = markdown_tables(report.read_text())
    assert found["Days of the fine series"][1][:4] == [*case.split("/"), "2020-10-07, 2020-10-09, 2020-10-17"]
    assert "SAM" not in [row[0] for row in found["Means over the cases"]]
