"""HDF-EOS5: one field of a sinusoidal grid, as NASA's VIIRS products come. The one file that uses h5py."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt
from affine import Affine
from pyproj import CRS

from stfgan_xr.errors import SourceError
from stfgan_xr.grid import SINUSOIDAL, SPHERE

LARGEST_CHUNK = 64 * 2**20
LARGEST_SIDE = 50_000
STRUCTURE = "HDFEOS INFORMATION/StructMetadata.0"
_FILTERS = {"gzip", "shuffle", "fletcher32"}
_PATH = re.compile(r"HDFEOS/GRIDS/([^/]+)/Data Fields/([^/]+)")


def _stated(text: str, key: str) -> str:
    match = re.search(rf'^\s*{key}=\(?"?([^)"\n]*)', text, re.MULTILINE)
    if match is None:
        raise ValueError(f"StructMetadata.0 states no {key}")
    return match[1]


def _pair(text: str, key: str) -> tuple[float, float]:
    first, second = (float(number) for number in _stated(text, key).split(","))
    return first, second


def grid_of(structure: str, name: str) -> tuple[Affine, tuple[int, int]]:
    """Transform and shape of a grid, from the text of StructMetadata.0 (HDF-EOS5 Data Model, section on grids).

    Raises
    ------
    ValueError
        If it describes no such grid, or one that is not in the sinusoidal projection of MODIS and VIIRS.
    """
    groups = re.findall(r"GROUP=(GRID_\d+)\s(.*?)END_GROUP=\1", structure, re.DOTALL)
    found = next((body for _, body in groups if f'GridName="{name}"' in body), None)
    if found is None:
        raise ValueError(f"StructMetadata.0 describes no grid {name!r}")
    if "HE5_GCTP_SNSOID" not in _stated(found, "Projection"):
        raise ValueError(f"grid {name!r} is in {_stated(found, 'Projection')}, not the sinusoidal projection")
    radius = float(_stated(found, "ProjParams").split(",")[0])
    if abs(radius - SPHERE) > 1e-3:
        raise ValueError(f"grid {name!r} is on a sphere of {radius} m, not {SPHERE} m")
    width, height = int(_stated(found, "XDim")), int(_stated(found, "YDim"))
    (left, top), (right, bottom) = _pair(found, "UpperLeftPointMtrs"), _pair(found, "LowerRightMtrs")
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and left < right and bottom < top):
        raise ValueError(f"grid {name!r} of {width} x {height} cells has its corners in the wrong places")
    return Affine((right - left) / width, 0, left, 0, (bottom - top) / height, top), (height, width)


class Field:
    """One field of a grid, open for reading; what a reader asks of it has the names that rasterio gives.

    Attributes
    ----------
    crs, transform, height, width
        Its grid.
    dtype
        Type of its values.
    """

    crs = CRS.from_user_input(SINUSOIDAL)

    def __init__(self, dataset: h5py.Dataset, transform: Affine, file: Any) -> None:
        self._dataset, self.transform = dataset, transform
        self._prefetch = getattr(file, "prefetch", None)
        self.height, self.width = dataset.shape
        self.dtype = np.dtype(dataset.dtype)

    def stated(self, key: str) -> float | None:
        """An attribute that is one number, such as ``_FillValue`` or ``scale_factor``; None if it is not there."""
        value = self._dataset.attrs.get(key)
        return None if value is None else float(np.ravel(value)[0])

    def read(self, _: int, window: tuple[tuple[int, int], tuple[int, int]]) -> npt.NDArray[Any]:
        """Values of some rows and columns."""
        rows, columns = (slice(*ends) for ends in window)
        if self._prefetch and self._dataset.chunks:
            self._prefetch(self._ranges(rows, columns))  # all at once, and not under the lock of h5py
        found: npt.NDArray[Any] = self._dataset[rows, columns]
        return found

    def _ranges(self, rows: slice, columns: slice) -> list[tuple[int, int]]:
        """Offset and length of the pieces of the file that hold some rows and columns."""
        high, wide = self._dataset.chunks
        firsts = ((r, c) for r in range(rows.start // high * high, rows.stop, high)
                  for c in range(columns.start // wide * wide, columns.stop, wide))  # fmt: skip
        found = (self._dataset.id.get_chunk_info_by_coord(first) for first in firsts)
        return [(info.byte_offset, info.size) for info in found if info.byte_offset is not None]


def _check(dataset: h5py.Dataset, name: str, label: str) -> None:
    """Refuse what could read other files or claim any amount of memory."""
    if dataset.external or dataset.is_virtual:
        raise SourceError(f"{label}: {name} keeps its values in another file")
    if dataset.ndim != 2:
        raise SourceError(f"{label}: {name} has {dataset.ndim} dimensions, expected 2")
    filters = set(dataset._filters) - _FILTERS
    if filters:
        raise SourceError(f"{label}: {name} is packed by {', '.join(sorted(filters))}, expected gzip")
    piece = dataset.chunks or dataset.shape
    if int(np.prod(piece, dtype=object)) * dataset.dtype.itemsize > LARGEST_CHUNK or max(dataset.shape) > LARGEST_SIDE:
        raise SourceError(f"{label}: {name} of {dataset.shape} cells in pieces of {piece} is larger than any product")


def _follow(file: h5py.File, path: str, label: str) -> h5py.Dataset:
    """A dataset reached by hard links only: others may lead out of the file."""
    place: Any = file
    for part in path.split("/"):
        kind = place.get(part, getlink=True) if isinstance(place, h5py.Group) else None
        if kind is None:
            raise SourceError(f"{label} has no {path!r}")
        if not isinstance(kind, h5py.HardLink):
            raise SourceError(f"{label}: {part!r} of {path!r} is a link")
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise SourceError(f"{label}: {path!r} holds no values")
    return place


@contextmanager
def open_field(file: IO[bytes] | io.RawIOBase, path: str, label: str) -> Iterator[Field]:
    """A field of an HDF-EOS5 file.

    Parameters
    ----------
    file
        The file, opened for reading in binary mode.
    path
        ``HDFEOS/GRIDS/<grid>/Data Fields/<field>``.
    label
        What the file is called in messages.

    Raises
    ------
    SourceError
        If it has no such field, or the field is not one of a sinusoidal grid within the file itself.
    OSError
        If it cannot be read, or is no HDF5.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise SourceError(f"{label}: {path!r} is no path of a field")
    with h5py.File(file, "r") as opened:
        dataset = _follow(opened, path, label)
        _check(dataset, match[2], label)
        structure = _follow(opened, STRUCTURE, label)
        _check_text(structure, label)
        text = structure[()]
        try:
            affine, shape = grid_of(text.decode("ascii") if isinstance(text, bytes) else str(text), match[1])
        except (ValueError, UnicodeDecodeError) as error:
            raise SourceError(f"{label}: {error}") from None
        if shape != dataset.shape:
            raise SourceError(f"{label}: {match[2]} has {dataset.shape} cells, its grid {shape}")
        yield Field(dataset, affine, file)


def _check_text(structure: h5py.Dataset, label: str) -> None:
    if structure.external or structure.is_virtual or structure.shape != () or structure.dtype.itemsize > 2**20:
        raise SourceError(f"{label}: StructMetadata.0 is not a text")
