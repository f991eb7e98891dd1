"""Daily Landsat-like cubes of any region from Landsat and MODIS.

``open_cube`` and ``fuse`` are the two names a notebook needs; both give an :class:`xarray.Dataset` of float32
reflectance. Heavy libraries are loaded on first use only.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("stfgan_xr")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

_HOMES = {"open_cube": "store", "fuse": "fusion"}
__all__ = ["__version__", "fuse", "open_cube"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"stfgan_xr.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
