"""Servers that fail, and what became of the runs that read from them: tokens, faults, missing assets, secrets."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from pipelines import cubes
from pipelines.console import err, out
from stfgan_xr import catalog, rasters, scenes, simulate, store
from stfgan_xr.aoi import read_aoi
from stfgan_xr.errors import StfganError
from stfgan_xr.grid import nested_grid
from stfgan_xr.load import load
from tests.range_server import Server, serving

ROOT = Path(__file__).parents[1]
CANARY = "canary"


@contextmanager
def impatient() -> Iterator[None]:
    """Short pauses between attempts, and no words of the commands."""
    names = {"PAUSE": 0.001, "LONGEST_PAUSE": 0.02}
    before = {name: getattr(rasters, name) for name in names}
    environment = {
        "GDAL_HTTP_RETRY_DELAY": "0.01",
        "GDAL_HTTP_PROXY": "127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,127.0.0.2,127.0.0.3,localhost",
    }
    kept = {name: os.environ.get(name) for name in environment}
    quiet = out.quiet, err.quiet
    try:
        for name, value in names.items():
            setattr(rasters, name, value)
        os.environ.update(environment)
        out.quiet = err.quiet = True
        yield
    finally:
        for name, value in before.items():
            setattr(rasters, name, value)
        for key, text in kept.items():
            os.environ.pop(key, None) if text is None else os.environ.update({key: text})
        out.quiet, err.quiet = quiet


@contextmanager
def signing(server: Server) -> Iterator[None]:
    """The Planetary Computer's signer, with the server's tokens for the server's files."""
    from planetary_computer import sas, settings

    found = settings.Settings.get()
    before = found.sas_url, sas.BLOB_STORAGE_DOMAIN
    found.sas_url, sas.BLOB_STORAGE_DOMAIN = server.url("token"), ""
    sas.TOKEN_CACHE.clear()
    try:
        yield
    finally:
        found.sas_url, sas.BLOB_STORAGE_DOMAIN = before
        sas.TOKEN_CACHE.clear()


def small_world(folder: Path) -> Path:
    """128 x 128 pixels and 40 days around the first of March 2020."""
    return simulate.ensure_world(simulate.World(size=128, start=date(2020, 2, 10), days=40), folder)


def behind(
    server: Server, world: Path, folder: Path, behaviour: str = "ok", signer: str = "none",
    keep: Callable[[str], bool] = lambda name: True, odd: dict[tuple[str, str], str] | None = None,
) -> str:  # fmt: skip
    """A catalog of a world whose assets lie on the server; the path of its TOML.

    Parameters
    ----------
    server, world, folder
        Of its files; where it is written.
    behaviour
        Of the server for its assets.
    signer
        Of both sides.
    keep
        Which items it has, by id.
    odd
        Other behaviours, by item and asset.
    """
    shutil.copytree(world, folder, ignore=shutil.ignore_patterns("*.tif"))
    for path in folder.glob("*/*.json"):
        document = json.loads(path.read_text())
        if path.name == "collection.json":
            links = document["links"]
            document["links"] = [k for k in links if k["rel"] != "item" or keep(Path(k["href"]).stem)]
        for name, asset in document.get("assets", {}).items():
            how = (odd or {}).get((document["id"], name), behaviour)
            asset["href"] = server.url(f"{how}/{path.parent.name}/{asset['href'].removeprefix('./')}")
        path.write_text(json.dumps(document))
    toml = folder / "catalog.toml"
    more = f'static = "catalog.json"\nhosts = ["http://127.0.0.1"]\nsigner = "{signer}"'
    toml.write_text(toml.read_text().replace('static = "catalog.json"', more))
    return str(toml)


def write_cubes(toml: str, folder: Path, allow_missing: bool = False) -> int:
    """The command ``pipelines.cubes`` for the red band of two days; its exit code."""
    try:
        cubes.command(
            dates="2020-03-01/2020-03-02", catalog=toml, bands="red", bracket_days=8, out_folder=folder,
            allow_missing=allow_missing,
        )  # fmt: skip
    except StfganError as error:
        return error.exit_code
    return 0


def digests(folder: Path) -> list[str]:
    """Of the pixels of both cubes."""
    return [store.content_digest(folder / name) for name in ("landsat.zarr", "modis.zarr")]


def blocks(folder: Path, name: str = "*.zarr") -> int:
    """Blocks that are recorded as written."""
    return len(list(folder.glob(f"{name}/{store.RECORDS}/t*.json")))


def chunks(folder: Path) -> int:
    """Files of pixels, recorded or not."""
    return len([path for path in folder.glob("*.zarr/red/c/**/*") if path.is_file()])


@dataclass(frozen=True)
class Place:
    """A world, its server, and what a run without any failure makes of it."""

    folder: Path
    world: Path
    server: Any
    good: Path

    def new(self, name: str) -> Path:
        """A folder that is not there yet."""
        return self.folder / name


@contextmanager
def place(folder: Path, world: Path | None = None) -> Iterator[Place]:
    """Make a world in a folder, serve it and write its cubes once."""
    world = world or small_world(folder / "world")
    with impatient(), serving(world, folder / "log") as server:
        good = folder / "good"
        if write_cubes(str(world / "catalog.toml"), good):
            raise SystemExit("the run without failures failed")
        yield Place(folder, world, server, good)


# ---------------------------------------------------------------- 1 tokens


def tokens(at: Place, seconds: float = 2, pause: float = 0.05) -> Iterator[Figure]:
    """Tokens that live two seconds in a job of more than twenty; and a refusal that stays."""
    with signing(at.server):
        how = f"clock-{seconds:g}-{pause:g}"
        toml = behind(at.server, at.world, at.new("clock"), how, "planetary-computer")
        started = time.monotonic()
        code = write_cubes(toml, at.new("clock-run"))
        took = time.monotonic() - started
        asked = [line for line in at.server.requests() if f" /{how}/" in line]
        given = len({line.split("sig=")[1].split()[0] for line in asked if "sig=" in line})
        same = code == 0 and digests(at.new("clock-run")) == digests(at.good)
        failed = blocks(at.good) - blocks(at.new("clock-run"))
        found = {"seconds": round(took, 1), "tokens": given, "failed_blocks": failed, "same_pixels": same}
        yield Figure(1, f"requests with tokens of {seconds:g} s", len(asked), found, same and given > 1)
        toml = behind(at.server, at.world, at.new("never"), "sig-never", "planetary-computer")
        code = write_cubes(toml, at.new("never-run"))
    found = {"exit_code": code, "blocks": blocks(at.new("never-run")), "files_of_pixels": chunks(at.new("never-run"))}
    yield Figure(1, "a refusal that stays", 1, found, list(found.values()) == [4, 0, 0])


# ---------------------------------------------------------------- 2 faults of servers


def random_faults(at: Place, seeds: int = 20, percent: int = 20) -> Iterator[Figure]:
    """Runs over a server that fails at random: the same pixels."""
    same = early = asked = most = 0
    for seed in range(seeds):
        how = f"random-{seed}-{percent}"
        toml = behind(at.server, at.world, at.new(how), how)
        code = write_cubes(toml, at.new(f"{how}-run"))
        same += code == 0 and digests(at.new(f"{how}-run")) == digests(at.good)
        lines = [line.split() for line in at.server.requests() if f" /{how}/" in line]
        asked += len(lines)
        # GDAL repeats single requests without regard to Retry-After; what is asked before an image is opened waits.
        early += sum(line[-1] == "early" for line in lines)
        most = max(most, max(int(line[3]) for line in lines))
    found = {"same_pixels": same, "requests": asked, "before_retry_after": early, "most_under_way": most}
    yield Figure(2, f"seeds of {percent} % failing requests", seeds, found, same == seeds)


# ---------------------------------------------------------------- 4 what is not there

GONE = "fail-404-999999"


def missing(at: Place) -> Iterator[Figure]:
    """One of forty assets is not there: an error, or a run without its scene."""
    landsat = sorted(p.stem for p in at.world.glob("landsat*/LC*.json") if "20200301" in p.stem or "20200302" in p.stem)
    modis = sorted(p.stem for p in at.world.glob("modis*/MCD*.json") if ".A2020055" <= p.stem[7:16] <= ".A2020061")
    kept = {*landsat[:4], *modis[:14]}
    assets = 3 * len(landsat[:4]) + 2 * len(modis[:14])
    for kind, item, asset, role in (
        ("Landsat", landsat[1], "qa_pixel", "qa_pixel"),
        ("MODIS", modis[5], "Nadir_Reflectance_Band1", "red"),
    ):
        name = f"gone-{kind}"
        toml = behind(at.server, at.world, at.new(name), keep=kept.__contains__, odd={(item, asset): GONE})
        bare = behind(at.server, at.world, at.new(f"{name}-bare"), keep=(kept - {item}).__contains__)
        strict = write_cubes(toml, at.new(f"{name}-strict"))
        code = write_cubes(toml, at.new(f"{name}-run"), allow_missing=True)
        again = write_cubes(toml, at.new(f"{name}-run"), allow_missing=True)
        without = write_cubes(bare, at.new(f"{name}-bare-run"))
        document = json.loads((at.new(f"{name}-run") / "run.json").read_text())
        same = digests(at.new(f"{name}-run")) == digests(at.new(f"{name}-bare-run"))
        wanted = {"scenes": 1, "assets": [{"id": item, "asset": role}]}
        unfinished = store.missing_blocks(at.new(f"{name}-strict") / f"{kind.lower()}.zarr")
        found = {
            "strict_exit_code": strict, "allowed_exit_code": code, "listed": document["missing"] == wanted,
            "same_as_without_it": same, "strict_blocks_missing": len(unfinished),
        }  # fmt: skip
        passed = strict == 4 and not code + again + without and found["listed"] and same and bool(unfinished)
        yield Figure(4, f"assets, one of {kind} is gone", assets, found, passed)


# ---------------------------------------------------------------- 15 secrets

_LOUD = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from planetary_computer import sas
sas.BLOB_STORAGE_DOMAIN = ""
from stfgan_xr import rasters
rasters.PAUSE, rasters.LONGEST_PAUSE = 0.001, 0.02
from pipelines import fuse
from pipelines.console import main
main(fuse.command)
"""


def secrets(at: Place, behaviours: tuple[str, ...] = ("clock-1-0", "sig-never")) -> Iterator[Figure]:
    """A token in whole runs with all logs on, one that ends well and one that does not: it shows nowhere."""
    hits = {"output_and_logs": 0, "files": 0, "graph": 0}
    sent, codes = 0, []
    for how in behaviours:
        toml = behind(at.server, at.world, at.new(f"secret-{how}"), how, "planetary-computer")
        folder = at.new(f"secret-{how}-run")
        command = [
            sys.executable,
            "-c",
            _LOUD,
            "--catalog",
            toml,
            "--dates",
            "2020-03-01",
            "--bands",
            "red",
            "--method",
            "delta",
        ]
        command += ["--bracket-days", "8", "--out", str(folder)]
        environment = os.environ | {"PC_SDK_SAS_URL": at.server.url("token"), "STFGAN_XR_DEBUG": "1", "CPL_DEBUG": "ON"}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        codes.append(ended.returncode)
        hits["output_and_logs"] += (ended.stdout + ended.stderr).count(CANARY)
        hits["files"] += sum(CANARY.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())
        sent += sum(f" /{how}/" in line and CANARY in line for line in at.server.requests())
        known = catalog.open_catalog(toml)
        assert known.fine is not None
        kept = scenes.read_scenes(folder)
        assert kept is not None
        found = kept[0]
        grid = nested_grid(read_aoi(at.world / "aoi.geojson"))
        with signing(at.server):
            graph = load(found, grid, side=known.fine, bands=["red"], tile=128).__dask_graph__()
            hits["graph"] += repr(list(graph)).count(CANARY) + pickle.dumps(dict(graph)).count(CANARY.encode())
    passed = not any(hits.values()) and sent > 0 and codes == [0, 1][: len(codes)]
    yield Figure(15, "requests with a canary token", sent, hits, passed)
