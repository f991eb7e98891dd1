"""From reflectance to what is looked at: composites of bands, spectral indices, and grey levels of a screen."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stfgan_xr.errors import InputError

Image = npt.NDArray[np.float32]

COMPOSITES: dict[str, tuple[str, str, str]] = {
    "true colour": ("red", "green", "blue"),
    "false colour": ("nir", "red", "green"),
    "shortwave": ("swir2", "nir", "red"),
}
"""Bands shown as red, green and blue."""

HOLE = 0.75
"""Grey of pixels without a value."""
GAMMA = 0.8


@dataclass(frozen=True)
class Index:
    """A spectral index: its name, the bands it is made of, its formula and where that comes from."""

    label: str
    bands: tuple[str, ...]
    formula: Callable[..., Image]
    source: str


def _ratio(above: Image, below: Image) -> Image:
    """A quotient; where the denominator is not positive, as over the darkest water, there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 1e-6, above / below, np.nan).astype(np.float32)


def _normalised(a: Image, b: Image) -> Image:
    """A normalised difference; the noise of dark water, where a reflectance is below zero, would leave -1 to 1."""
    return np.clip(_ratio(a - b, a + b), -1, 1)


def _evi(blue: Image, red: Image, nir: Image) -> Image:
    return _ratio(2.5 * (nir - red), nir + 6 * red - 7.5 * blue + 1)


INDICES: dict[str, Index] = {
    "ndvi": Index("NDVI", ("nir", "red"), _normalised, "Rouse et al. 1974"),
    "evi": Index("EVI", ("blue", "red", "nir"), _evi, "Huete et al. 2002"),
    "ndwi": Index("NDWI", ("green", "nir"), _normalised, "McFeeters 1996"),
    "nbr": Index("NBR", ("nir", "swir2"), _normalised, "Key and Benson 2006"),
}
"""Spectral indices by name."""


def composites_of(bands: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The composites that some bands allow; where they allow none, the first band alone.

    >>> composites_of(["red", "green", "nir"])
    {'false colour': ('nir', 'red', 'green')}
    >>> composites_of(["nir"])
    {'nir': ('nir',)}
    """
    known = tuple(bands)
    found: dict[str, tuple[str, ...]] = {name: rgb for name, rgb in COMPOSITES.items() if set(rgb) <= set(known)}
    return found or {known[0]: known[:1]}


def indices_of(bands: Iterable[str]) -> tuple[str, ...]:
    """Names of the indices that some bands allow.

    >>> indices_of(["red", "nir"])
    ('ndvi',)
    """
    known = set(bands)
    return tuple(name for name, index in INDICES.items() if set(index.bands) <= known)


def index_of(name: str, reflectance: Mapping[str, Image]) -> Image:
    """A spectral index of reflectance by band, NaN where it is not defined.

    Parameters
    ----------
    name
        ``ndvi``, ``evi``, ``ndwi`` or ``nbr``.
    reflectance
        Arrays of any one shape by band; 1 is 100 %.

    Raises
    ------
    InputError
        If the index is unknown or one of its bands is not there.

    >>> float(index_of("ndvi", {"red": np.float32(0.1), "nir": np.float32(0.3)}).round(3))
    0.5
    """
    if name not in INDICES:
        raise InputError(f"index {name!r} is unknown; choose one of {', '.join(INDICES)}")
    index = INDICES[name]
    missing = [band for band in index.bands if band not in reflectance]
    if missing:
        raise InputError(f"{index.label} needs {', '.join(index.bands)}; there is no {missing[0]}")
    return index.formula(*(np.asarray(reflectance[band], np.float32) for band in index.bands))


def stretch_of(images: Sequence[Image]) -> tuple[float, float]:
    """Reflectances shown as black and white: the 1st and 99th percentile of all images together."""
    values = np.concatenate([image[:, ::4, ::4].ravel() for image in images])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (1, 99)))
    return low, max(high, low + 1e-3)


def shade(image: Image, stretch: tuple[float, float]) -> Image:
    """Reflectance ``(1 or 3, y, x)`` as levels of a screen ``(y, x, 3)`` of 0 to 1; pixels without a value are grey."""
    low, high = stretch
    shown = np.clip((np.moveaxis(image, 0, -1) - low) / (high - low), 0, 1) ** GAMMA
    if shown.shape[-1] == 1:
        shown = shown.repeat(3, axis=-1)
    shown[np.isnan(image).any(axis=0)] = HOLE
    return np.asarray(shown, np.float32)


def as_table(title: str, rows: Mapping[str, object]) -> str:
    """What a notebook shows of an object: its title, and names with values, all escaped.

    >>> as_table("Job", {"bands": "<red>"})
    '<table><caption>Job</caption><tr><th>bands</th><td>&lt;red&gt;</td></tr></table>'
    """
    lines = (f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{html.escape(title)}</caption>{''.join(lines)}</table>"
