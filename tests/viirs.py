"""VIIRS as LP DAAC ships it: HDF-EOS5 files of one sinusoidal grid, with their STAC items."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine

from stfgan_xr.grid import SPHERE
from stfgan_xr.harmonise import Linear
from stfgan_xr.sensors import FILL, VNP43MA4
from stfgan_xr.simulate import MODIS_BAND

GRID = "VIIRS_Grid_BRDF"
FIELDS = f"HDFEOS/GRIDS/{GRID}/Data Fields"
STRUCTURE = "HDFEOS INFORMATION/StructMetadata.0"
PIXEL = 926.625433055556
CHANNEL = dict(VNP43MA4.channels)
REFLECTANCE, QUALITY = "Nadir_Reflectance", "BRDF_Albedo_Band_Mandatory_Quality"
CODING = {"_FillValue": np.int16(32767), "scale_factor": np.float32(1e-4), "add_offset": np.float32(0)}


def structure(shape: tuple[int, int], affine: Affine, names: Iterable[str] = (), **changes: Any) -> str:
    """The text of StructMetadata.0 for some fields, after the example in the HDF-EOS5 guide."""
    (left, top), (right, bottom) = affine @ (0, 0), affine @ (shape[1], shape[0])
    stated = {
        "XDim": shape[1],
        "YDim": shape[0],
        "UpperLeftPointMtrs": f"({left:.6f},{top:.6f})",
        "LowerRightMtrs": f"({right:.6f},{bottom:.6f})",
        "Projection": "HE5_GCTP_SNSOID",
        "ProjParams": f"({SPHERE:.6f},0,0,0,0,0,0,0,0,0,0,0,0)",
        "SphereCode": -1,
        "GridOrigin": "HE5_HDFE_GD_UL",
    } | changes
    lines = "".join(f"\t\t{key}={value}\n" for key, value in stated.items())
    dims = "\t\tGROUP=Dimension\n\t\tEND_GROUP=Dimension\n\t\tGROUP=DataField\n"
    for number, name in enumerate(names, 1):
        dims += f'\t\t\tOBJECT=DataField_{number}\n\t\t\t\tDataFieldName="{name}"\n\t\t\t\tDataType=H5T_NATIVE_SHORT\n'
        dims += f'\t\t\t\tDimList=("YDim","XDim")\n\t\t\t\tMaxdimList=("YDim","XDim")\n\t\t\tEND_OBJECT=DataField_{number}\n'
    dims += "\t\tEND_GROUP=DataField\n"
    grid = f'\tGROUP=GRID_1\n\t\tGridName="{GRID}"\n{lines}{dims}\tEND_GROUP=GRID_1\n'
    swath = "GROUP=SwathStructure\nEND_GROUP=SwathStructure\n"
    return f"{swath}GROUP=GridStructure\n{grid}END_GROUP=GridStructure\nEND\n"


def write(path: Path, affine: Affine, fields: Mapping[str, npt.NDArray[Any]], text: str | None = None) -> Path:
    """A file of some fields ``(y, x)`` on one grid."""
    shape = next(iter(fields.values())).shape
    with h5py.File(path, "w") as file:
        file[STRUCTURE] = np.bytes_(structure(shape, affine, fields) if text is None else text)
        for name, values in fields.items():
            chunks = tuple(min(side, 64) for side in shape)
            made = file.create_dataset(f"{FIELDS}/{name}", data=values, chunks=chunks, compression="gzip", shuffle=True)
            made.attrs.update(CODING if name.startswith(REFLECTANCE) else {"_FillValue": np.uint8(255)})
    return path


def item(path: Path, day: date, tile: str, bounds: tuple[float, float, float, float]) -> dict[str, Any]:
    """The STAC item of a file as CMR-STAC gives it: no proj fields, no bands, one asset."""
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "links": [],
        "id": f"VNP43MA4.A{day:%Y%j}.{tile}.002.{day + timedelta(days=9):%Y%j}062011",
        "collection": "VNP43MA4_002", "bbox": list(bounds), "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": f"{day}T00:00:00Z", "start_datetime": f"{day}T00:00:00Z",
                       "end_datetime": f"{day}T23:59:59Z"},
        "assets": {"data": {"href": str(path), "title": path.name, "type": "application/x-hdfeos"}},
    }  # fmt: skip


def fields_of(counts: Mapping[str, npt.NDArray[np.int16]]) -> dict[str, npt.NDArray[Any]]:
    """Fields of VNP43MA4 from counts of each band (reflectance x 10000, fill -32768), of full quality."""
    found: dict[str, npt.NDArray[Any]] = {}
    for band, values in counts.items():
        hole = values == FILL
        found[f"{REFLECTANCE}_{CHANNEL[band]}"] = np.where(hole, 32767, values).astype(np.int16)
        found[f"{QUALITY}_{CHANNEL[band]}"] = np.where(hole, 255, 0).astype(np.uint8)
    return found


TOML = """
name = "viirs"
[coarse]
static = "catalog.json"
[coarse.collections.VNP43MA4_002]
sensors = ["vnp43ma4"]
[coarse.collections.VNP43MA4_002.assets]
"""


def change_of_sensors(
    world: Path, folder: Path, *, last: date, first: date, linears: Mapping[str, Linear], noise: float = 0.0
) -> Path:
    """A copy of a demo world whose MODIS ends with one day and whose VIIRS begins with another; the catalog's TOML.

    VIIRS sees what MODIS saw, in bands of its own: MODIS = gain x VIIRS + offset, and noise (of reflectance).
    """
    shutil.copytree(world, folder)
    modis, made = folder / "modis-43A4-061", folder / "VNP43MA4_002"
    made.mkdir()
    rng, names = np.random.default_rng(0), []
    for path in sorted(modis.glob("MCD43A4.*.json")):
        seen = json.loads(path.read_text())
        day = datetime.strptime(path.name.split(".")[1], "A%Y%j").date()
        if day >= first:
            names.append(_follow(seen, modis, made, day, linears, noise, rng))
        if day > last:
            path.unlink()
    kept = [{"rel": "item", "href": f"./{p.name}"} for p in sorted(modis.glob("MCD43A4.*.json"))]
    collection = json.loads((modis / "collection.json").read_text())
    (modis / "collection.json").write_text(json.dumps(collection | {"links": kept}))
    kept = [{"rel": "item", "href": f"./{name}"} for name in names]
    (made / "collection.json").write_text(json.dumps(collection | {"id": "VNP43MA4_002", "links": kept}))
    root = json.loads((folder / "catalog.json").read_text())
    root["links"].append({"rel": "child", "href": "./VNP43MA4_002/collection.json"})
    (folder / "catalog.json").write_text(json.dumps(root))
    roles = [f'{role} = ["data", "*.h5"]\n' for band in CHANNEL for role in (band, f"quality_{band}")]
    (folder / "viirs.toml").write_text(TOML + "".join(roles))
    toml = folder / "catalog.toml"
    text = toml.read_text().replace("[coarse]\n", '[coarse]\nsuccessor = "viirs.toml"\n')
    toml.write_text(text.replace('sensors = ["mcd43a4"]', f'sensors = ["mcd43a4"]\nuntil = {last}'))
    return toml


def _follow(
    seen: dict[str, Any], modis: Path, made: Path, day: date, linears: Mapping[str, Linear], noise: float,
    rng: np.random.Generator,
) -> str:  # fmt: skip
    """Write the VIIRS file and item of a MODIS item; the item's file name."""
    stem, fields = made / f"VNP43MA4.A{day:%Y%j}.{seen['id'].split('.')[2]}.002.2020200062011", {}
    for band, number in MODIS_BAND.items():
        values, at = _read(modis / seen["assets"][f"{REFLECTANCE}_Band{number}"]["href"])
        words, _ = _read(modis / seen["assets"][f"{QUALITY}_Band{number}"]["href"])
        other = (values * 1e-4 - linears[band].offset) / linears[band].gain + noise * rng.standard_normal(values.shape)
        raw = np.rint(other * 1e4).clip(0, 32766)
        fields[f"{REFLECTANCE}_{CHANNEL[band]}"] = np.where(values == 32767, 32767, raw).astype(np.int16)
        fields[f"{QUALITY}_{CHANNEL[band]}"] = words
    path = write(stem.with_suffix(stem.suffix + ".h5"), at, fields)
    document = item(path, day, seen["id"].split(".")[2], tuple(seen["bbox"]))
    document["assets"]["data"]["href"] = f"./{path.name}"
    name = f"{document['id']}.json"
    (made / name).write_text(json.dumps(document))
    return name


def _read(path: Path) -> tuple[npt.NDArray[Any], Affine]:
    with rasterio.open(path) as source:
        return source.read(1), source.transform
