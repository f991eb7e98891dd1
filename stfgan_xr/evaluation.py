"""How good a method is: acquisitions withheld and predicted, and, in the demo, the truth itself.

The protocol is fair: a case ``t1/tp/t2`` is fused from the acquisitions of ``t1`` and ``t2`` and the coarse series
only, so nothing acquired on ``tp`` or strictly between ``t1`` and ``t2`` is used; methods that ask for all observations
also have those before ``t1`` and after ``t2``. Scores are over the pixels clear on
all three days to which every method gives a value; conventions are those of :mod:`stfgan_xr.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stfgan_xr import changes
from stfgan_xr.brackets import band_names, series
from stfgan_xr.days import from_number, to_datetime64, to_number, to_numbers
from stfgan_xr.errors import InputError
from stfgan_xr.fusion import Quality, fuse
from stfgan_xr.grid import Window, ratio_of
from stfgan_xr.landscape import Truth
from stfgan_xr.metrics import NAMES, Scores, common_mask, sample_scores, scores, seam, with_intervals, with_skill
from stfgan_xr.predictors import Predictor, wants_archive
from stfgan_xr.predictors.simple import Delta, Linear
from stfgan_xr.predictors.uncertainty import SHARES, known
from stfgan_xr.sensors import is_clear

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
LEAST_CLEAR = 0.2
"""Part of an image that must be clear for its day to be withheld or to bracket one that is."""


@dataclass(frozen=True, order=True)
class Triplet:
    """A case: predict ``target`` from the acquisitions of ``before`` and ``after``."""

    before: date
    target: date
    after: date

    def __str__(self) -> str:
        return f"{self.before}/{self.target}/{self.after}"


def triplets_from_text(text: str) -> tuple[Triplet, ...]:
    """The cases of a comma list of ``t1/tp/t2``, in its order.

    Raises
    ------
    InputError
        If one is not three ascending days.

    >>> [str(triplet) for triplet in triplets_from_text("2020-10-02/2020-10-12/2020-10-22")]
    ['2020-10-02/2020-10-12/2020-10-22']
    """
    return tuple(_triplet(part.strip()) for part in text.split(","))


def _triplet(text: str) -> Triplet:
    try:
        before, target, after = (date.fromisoformat(day.strip()) for day in text.split("/"))
    except ValueError:
        raise InputError(
            f"--triplets: {text!r} is not YYYY-MM-DD/YYYY-MM-DD/YYYY-MM-DD (before/target/after)"
        ) from None
    if not before < target < after:
        raise InputError(f"--triplets {text!r}: the target must lie between the other two days")
    return Triplet(before, target, after)


@dataclass(frozen=True)
class Row:
    """What a method reached in one case.

    Attributes
    ----------
    day
        The day predicted.
    triplet
        The case, None against the truth.
    scores
        Over the pixels that count, with the skill where linear and delta are known.
    missing
        Share of the pixels with a reference to which the method gives no value.
    classes
        Scores over parts of the image, without those that look at neighbours.
    """

    day: date
    triplet: Triplet | None
    scores: Scores
    missing: float = 0.0
    classes: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The cases of one method, in order, and the names of its bands."""

    rows: tuple[Row, ...]
    bands: tuple[str, ...] = ()

    @property
    def mean(self) -> dict[str, float | None]:
        """Mean over the cases in which a score is known, by name; None where it never is."""
        return _means([values(row.scores) for row in self.rows])

    @property
    def missing(self) -> float:
        """Mean share without a value."""
        return sum(row.missing for row in self.rows) / max(len(self.rows), 1)

    @property
    def band_means(self) -> dict[str, dict[str, float | None]]:
        """Mean scores of each band over the cases."""
        return {band: _means([_of_band(row.scores, at) for row in self.rows]) for at, band in enumerate(self.bands)}

    @property
    def class_means(self) -> dict[str, dict[str, float | None]]:
        """Mean scores of each part of the image over the cases, each weighted by its pixels of the part."""
        parts = self._parts()
        return {name: _means([*map(values, found)], [part.pixels for part in found]) for name, found in parts.items()}

    @property
    def class_pixels(self) -> dict[str, int]:
        """Pixels of each part of the image, all cases together."""
        return {name: sum(part.pixels for part in found) for name, found in self._parts().items()}

    def _parts(self) -> dict[str, list[Scores]]:
        names = dict.fromkeys(name for row in self.rows for name in row.classes)
        return {name: [row.classes[name] for row in self.rows if name in row.classes] for name in names}


Table = dict[str, Result]
"""Results by method."""


def values(found: Scores) -> dict[str, float | None]:
    """Scores by name."""
    return {name: getattr(found, name) for name in NAMES}


def _of_band(found: Scores, at: int) -> dict[str, float | None]:
    return {name: of_bands[at] for name, of_bands in found.by_band.items()}


def _means(
    found: Sequence[Mapping[str, float | None]], weights: Sequence[int] | None = None
) -> dict[str, float | None]:
    means: dict[str, float | None] = {}
    for name in NAMES:
        pairs = zip((part.get(name) for part in found), weights or [1] * len(found), strict=True)
        known = [(value, weight) for value, weight in pairs if value is not None]
        total = sum(weight for _, weight in known)
        means[name] = sum(value * weight for value, weight in known) / total if total else None
    return means


def evaluate_triplets(
    landsat: xr.Dataset, modis: xr.Dataset, methods: Mapping[str, Predictor], triplets: Iterable[Triplet]
) -> Table:
    """Predict acquisitions from those before and after and score them.

    Parameters
    ----------
    landsat, modis
        Fine and coarse series, counts or reflectance.
    methods
        Predictors of the same bands by name. Linear and delta are computed in any case, for the skill.
    triplets
        The cases.

    Returns
    -------
    dict
        For each method its rows in the order of the cases; their classes are those of
        :func:`stfgan_xr.changes.of_observations`.

    Raises
    ------
    InputError
        If a day of a triplet has no acquisition, or the methods' bands differ.

    Notes
    -----
    One image of each method is in memory at a time of each case, over the whole area.
    """
    bands = _common_bands(methods)
    compared: dict[str, Predictor] = {"linear": Linear(bands), "delta": Delta(bands), **methods}
    ratio = ratio_of(landsat.odc.geobox, modis.odc.geobox)
    rows: dict[str, list[Row]] = {name: [] for name in methods}
    for triplet in triplets:
        before, truth, after, valid = _observations(landsat, triplet, bands)
        days = to_datetime64((triplet.before, triplet.after))
        given = {False: landsat.sel(time=days), True: _outside(landsat, *days)}
        fused = {
            name: _predict(given[wants_archive(predictor)], modis, predictor, triplet)
            for name, predictor in compared.items()
        }
        classes = changes.of_observations(before, truth, after)
        found = _compare(fused, triplet.target, bands, truth, valid, ratio, classes)
        for name in methods:
            rows[name].append(replace(found[name], day=triplet.target, triplet=triplet))
    return {name: Result(tuple(found_rows), bands) for name, found_rows in rows.items()}


def _outside(landsat: xr.Dataset, before: np.datetime64, after: np.datetime64) -> xr.Dataset:
    """Without the acquisitions between two days."""
    days = landsat["time"].values
    return landsat.isel(time=(days <= before) | (days >= after))


def _common_bands(methods: Mapping[str, Predictor]) -> tuple[str, ...]:
    sets = {predictor.bands for predictor in methods.values()}
    if len(sets) != 1:
        raise InputError(f"the methods must have the same bands, at least one method is needed: {sorted(sets)}")
    return sets.pop()


def _observation(landsat: xr.Dataset, day: date, bands: Sequence[str]) -> tuple[Float, Bool]:
    """An acquisition ``(band, y, x)`` and where it is clear in all bands."""
    observed = series(landsat, bands)
    if to_number(day) not in observed.days:
        known = ", ".join(from_number(number).isoformat() for number in observed.days)
        raise InputError(f"no fine image on {day}; there are {known}")
    index, window = [observed.days.index(to_number(day))], Window(0, observed.shape[0], 0, observed.shape[1])
    image = observed.read(index, window)[0]
    return image, is_clear(observed.qa(index, window)[0]) & common_mask(image)


def _observations(landsat: xr.Dataset, triplet: Triplet, bands: Sequence[str]) -> tuple[Float, Float, Float, Bool]:
    """The images of a case in order of the days, and where all three are clear."""
    days = (triplet.before, triplet.target, triplet.after)
    (before, *first), (target, *second), (after, *third) = (_observation(landsat, day, bands) for day in days)
    return before, target, after, np.logical_and.reduce([*first, *second, *third])


def _predict(pair: xr.Dataset, modis: xr.Dataset, predictor: Predictor, triplet: Triplet) -> xr.Dataset:
    reach = max((triplet.target - triplet.before).days, (triplet.after - triplet.target).days)
    sure = known(predictor) is not None
    return fuse(pair, modis, predictor, [triplet.target], bracket_days=reach, uncertainty=sure).compute()


def _image(dataset: xr.Dataset, day: date, bands: Sequence[str]) -> Float:
    # One compute for all bands: they share the work of their block.
    computed = dataset[list(bands)].sel(time=to_datetime64([day])[0]).compute()
    return np.stack([np.asarray(computed[band].values, np.float32) for band in bands])


@dataclass(frozen=True)
class _Spread:
    """The standard deviation ``(band, y, x)`` of an image, and the half widths ``(band,)`` of its intervals."""

    std: Float
    widths: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

    @classmethod
    def of(cls, fused: xr.Dataset, day: date, bands: Sequence[str]) -> _Spread | None:
        names = [f"std_{band}" for band in bands]
        if not all(name in fused for name in names):
            return None
        low, high = (np.array([fused[name].attrs[f"interval_{share * 100:.0f}"] for name in names]) for share in SHARES)
        return cls(_image(fused, day, names), (low, high))


def _compare(
    fused: Mapping[str, xr.Dataset],
    day: date,
    bands: Sequence[str],
    truth: npt.NDArray[Any],
    valid: Bool,
    ratio: int,
    classes: Mapping[str, Bool],
) -> dict[str, Row]:
    """Rows of one case without their day; every method is scored over the same pixels."""
    predictions = {name: _image(dataset, day, bands) for name, dataset in fused.items()}
    spreads = {name: _Spread.of(dataset, day, bands) for name, dataset in fused.items()}
    given = {name: common_mask(prediction) for name, prediction in predictions.items()}
    everywhere = np.logical_and.reduce([valid, *given.values()])

    def judged(measure: Callable[..., Scores], mask: Bool) -> dict[str, Scores]:
        plain = {name: measure(image, truth, mask, ratio) for name, image in predictions.items()}
        found = {name: with_skill(score, plain.get("linear"), plain.get("delta")) for name, score in plain.items()}
        sure = {name: spread for name, spread in spreads.items() if spread is not None}
        return found | {
            name: with_intervals(found[name], predictions[name], truth, mask, spread.std, spread.widths)
            for name, spread in sure.items()
        }

    found = judged(scores, everywhere)
    parts = {part: judged(sample_scores, everywhere & mask) for part, mask in classes.items()}
    count = max(int(valid.sum()), 1)
    return {
        name: Row(
            date.min, None, score, float((valid & ~given[name]).sum()) / count,
            {part: of_part[name] for part, of_part in parts.items()},
        )
        for name, score in found.items()
    }  # fmt: skip


def usable_days(landsat: xr.Dataset, least_clear: float = LEAST_CLEAR) -> tuple[date, ...]:
    """The days of a fine series on which at least a part of the image is clear."""
    observed = series(landsat, band_names(landsat))
    window = Window(0, observed.shape[0], 0, observed.shape[1])
    shares = (float(is_clear(observed.qa([index], window)[0]).mean()) for index in range(len(observed.days)))
    return tuple(from_number(day) for day, share in zip(observed.days, shares, strict=True) if share >= least_clear)


def around(days: Iterable[date], day: date) -> tuple[date | None, date | None]:
    """The last of the days before a day and the first after it, None where there is none.

    >>> around([date(2020, 3, 1), date(2020, 3, 9), date(2020, 3, 17)], date(2020, 3, 9))
    (datetime.date(2020, 3, 1), datetime.date(2020, 3, 17))
    """
    known = tuple(days)
    return max((d for d in known if d < day), default=None), min((d for d in known if d > day), default=None)


def withheld(
    landsat: xr.Dataset, days: Iterable[date] | None = None, least_clear: float = LEAST_CLEAR
) -> tuple[Triplet, ...]:
    """Cases that leave out each acquisition in turn: consecutive days that are clear enough.

    Parameters
    ----------
    landsat
        Fine series.
    days
        Target days that count, by default all.
    least_clear
        Part of the image that must be clear on each of the three days.

    Returns
    -------
    tuple
        In order of the days; empty with fewer than three usable days.
    """
    usable = usable_days(landsat, least_clear)
    cases = (Triplet(*case) for case in zip(usable, usable[1:], usable[2:], strict=False))
    wanted = None if days is None else set(days)
    return tuple(case for case in cases if wanted is None or case.target in wanted)


def evaluate_truth(
    fused: Mapping[str, xr.Dataset],
    truth: Truth,
    days: Iterable[date],
    classes: Callable[[date], Mapping[str, Bool]] | None = None,
    ratio: int = 16,
) -> Table:
    """Score fused cubes against the full truth, which only a simulated world has.

    Parameters
    ----------
    fused
        Fused Datasets of the same grid and bands by method; with ``linear`` and ``delta`` among them skill is known.
    truth
        Gives the reflectance of a day, such as ``World.reflectance``.
    days
        Days to score.
    classes
        Gives parts of the image ``(y, x)`` by name for a day. Where the Datasets hold ``qa``, ``predicted`` (not
        observed on the day itself) is one of them.
    ratio
        Fine pixels along a coarse cell.
    """
    first = next(iter(fused.values()))
    bands = tuple(name for name in band_names(first) if not name.startswith("residual_"))
    window = Window(0, first.sizes["y"], 0, first.sizes["x"])
    rows: dict[str, list[Row]] = {name: [] for name in fused}
    for day in days:
        reference = np.asarray(truth(day, bands, window), np.float32)
        parts = _predicted(first, day) | dict(classes(day) if classes else {})
        for name, row in _compare(fused, day, bands, reference, common_mask(reference), ratio, parts).items():
            rows[name].append(replace(row, day=day))
    return {name: Result(tuple(found), bands) for name, found in rows.items()}


def seams(name: str, fused: xr.Dataset, landsat: xr.Dataset, days: Iterable[date]) -> dict[str, float]:
    """Whether the tiles of a cube show: :func:`stfgan_xr.metrics.seam` of it and of the fine observations there.

    Parameters
    ----------
    name
        What it was fused by.
    fused
        A cube that :func:`stfgan_xr.open_cube` opened: it knows its tiles.
    landsat
        Fine series on its grid; clear pixels of usable days count.
    days
        Days of the cube to look at.

    Returns
    -------
    dict
        Means over the days, of ``name`` and of ``observations``; empty where the image is one tile.
    """
    layout = fused.attrs["stfgan_xr"]["layout"]
    bands = [band for band in band_names(fused) if not band.startswith("residual_")]
    observed = (_observation(landsat, day, bands) for day in usable_days(landsat))
    images = {
        name: (_image(fused, day, bands) for day in days),
        "observations": (np.where(clear, image, np.nan) for image, clear in observed),
    }
    found = {of: [seam(image, layout["tile"], layout["ratio"]) for image in part] for of, part in images.items()}
    known = {of: [value for value in part if value is not None] for of, part in found.items()}
    return {of: sum(part) / len(part) for of, part in known.items() if part}


PREDICTED = {"predicted": "not observed on the day itself"}
"""Definition of the class that ``qa`` tells."""


def _predicted(fused: xr.Dataset, day: date) -> dict[str, Bool]:
    if "qa" not in fused:
        return {}
    qa = np.asarray(fused["qa"].sel(time=to_datetime64([day])[0]).values)
    return {"predicted": (qa & (Quality.OBSERVED | Quality.NODATA)) == 0}


def spread(days: Sequence[date], count: int) -> tuple[date, ...]:
    """At most ``count`` of the days, evenly spread over them.

    >>> [day.day for day in spread([date(2020, 1, n) for n in range(1, 32)], 4)]
    [4, 12, 20, 28]
    """
    if len(days) <= count:
        return tuple(days)
    return tuple(days[int((number + 0.5) * len(days) / count)] for number in range(count))


def fused_days(fused: xr.Dataset) -> tuple[date, ...]:
    """The days of a cube."""
    return tuple(from_number(int(number)) for number in to_numbers(fused["time"].values))


def to_json(table: Table) -> dict[str, Any]:
    """A table as JSON values: ``{method: {"rows": [{"triplet" or "day", score...}], "mean": {score...}}}``.

    Scores that are not defined are null. ``bands`` and ``classes`` hold means by name, those of classes weighted by
    their ``pixels``. Rows hold further ``pixels`` (how many were scored), ``missing`` (share without a value),
    ``bands`` (scores by name, one for each band in order) and ``classes``.
    """
    return {name: _result_json(result) for name, result in table.items()}


def _result_json(result: Result) -> dict[str, Any]:
    classes = {name: means | {"pixels": result.class_pixels[name]} for name, means in result.class_means.items()}
    found = {"rows": [_row_json(row) for row in result.rows], "mean": result.mean, "missing": result.missing}
    return found | {"bands": result.band_means} | ({"classes": classes} if classes else {})


def _row_json(row: Row) -> dict[str, Any]:
    case = {"triplet": str(row.triplet)} if row.triplet else {}
    facts = {"day": row.day.isoformat(), "missing": row.missing}
    classes = {"classes": {name: _scores_json(part) for name, part in row.classes.items()}} if row.classes else {}
    return case | _scores_json(row.scores) | facts | classes


def _scores_json(found: Scores) -> dict[str, Any]:
    return values(found) | {"pixels": found.pixels, "bands": {name: list(of) for name, of in found.by_band.items()}}
