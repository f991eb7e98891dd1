"""The same command every night on one run folder, while imagery comes in late, is reprocessed, withdrawn or changed.

A demo world is delivered to a catalog night by night. After each night the three cubes are held against a run from
nothing of what the catalog holds then, value by value. What was written of the fused cube, told by the files, is held
against what had to be: blocks with days that were not there, and blocks in which a value is another. Every other night
is killed on its way first.

``python -m benchmarks.nights`` writes ``benchmarks/nights.json`` and ``nights.md``.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.survival import NAMES, SERVER, Plan, Trap
from pipelines.console import main, out
from stfgan_xr import store
from stfgan_xr.files import write_json
from stfgan_xr.rasters import read_raster, write_cog
from stfgan_xr.simulate import World, ensure_world

HERE = Path(__file__).parent
RESULTS, DOCUMENT = HERE / "nights.json", HERE / "nights.md"
LANDSAT, MODIS = "landsat-c2-l2", "modis-43A4-061"
SERVER.set_forkserver_preload(
    ["benchmarks.survival", "stfgan_xr.load", "stfgan_xr.catalog", "stfgan_xr.predictors.simple"]
)
STEP, FIRST, AHEAD = 3, 30, 5
"""Days between two nights, days of the first one, and days that Landsat is ahead of MODIS."""
OPTIONS = ("--bands", "red", "--method", "delta", "--bracket-days", "32", "--tile", "64", "--no-report")


@dataclass
class Delivery:
    """An item, and the nights in which the catalog has it."""

    item: dict[str, Any]
    collection: str
    first: int
    last: int = 10**6


@dataclass
class Feed:
    """A world that is delivered night by night.

    Attributes
    ----------
    folder
        Where its catalog lies.
    deliveries
        Its items.
    in_place
        By night the item whose images become others under the same address.
    events
        By night what is odd about it.
    """

    folder: Path
    world: World
    deliveries: list[Delivery] = field(default_factory=list)
    in_place: dict[int, Delivery] = field(default_factory=dict)
    events: dict[int, list[str]] = field(default_factory=dict)

    def newest(self, night: int) -> date:
        """The last day of MODIS that a night has."""
        return self.world.start + timedelta(days=FIRST - 1 + STEP * night)

    def night_of(self, day: date) -> int:
        """The first night that has a day."""
        return max(0, -(-((day - self.world.start).days - FIRST + 1) // STEP))

    def say(self, night: int, what: str) -> None:
        """Note something odd."""
        self.events.setdefault(night, []).append(what)

    def deliver(self, night: int) -> None:
        """Make the catalog what it is on a night."""
        if night in self.in_place:
            delivery = self.in_place[night]
            delivery.item["properties"]["updated"] = f"{self.newest(night)}T12:00:00Z"
            _brighten(self.folder / delivery.collection, delivery.item, delivery.item)
        for name in (LANDSAT, MODIS):
            path = self.folder / name / "collection.json"
            collection = json.loads(path.read_text())
            there = [d.item for d in self.deliveries if d.collection == name and d.first <= night <= d.last]
            for item in there:
                write_json(self.folder / name / f"{item['id']}.json", item)
            root = [link for link in collection["links"] if link["rel"] == "root"]
            links = [{"rel": "item", "href": f"./{item['id']}.json", "type": "application/geo+json"} for item in there]
            write_json(path, collection | {"links": [*root, *links]})


def _bands(item: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Assets of an item that hold reflectance, and their files."""
    for name, asset in item["assets"].items():
        if name == "red" or name.startswith("Nadir"):
            yield name, asset["href"].removeprefix("./")


def _brighten(folder: Path, source: dict[str, Any], target: dict[str, Any], by: int = 300) -> None:
    """Images of an item, brighter, as those of another."""
    files = dict(_bands(target))
    for name, file in _bands(source):
        values, grid, nodata = read_raster(folder / file)
        values = np.where(values == (0 if nodata is None else nodata), values, values + by).astype(values.dtype)
        write_cog(folder / files[name], values.squeeze(), grid, nodata)


def _renamed(item: dict[str, Any], name: str) -> dict[str, Any]:
    """A copy of an item with another name and other files for its bands."""
    made = copy.deepcopy(item) | {"id": name}
    for asset, file in _bands(item):
        made["assets"][asset]["href"] = f"./{name}_{file}"
    return made


def make_feed(folder: Path, nights: int, size: int, seed: int) -> Feed:
    """A world, and when each of its items comes."""
    world = World(size=size, start=date(2020, 2, 1), days=FIRST + STEP * nights + AHEAD)
    feed = Feed(ensure_world(world, folder), world)
    draw = random.Random(seed)
    for name, ahead in ((LANDSAT, AHEAD), (MODIS, 0)):
        for link in json.loads((folder / name / "collection.json").read_text())["links"]:
            if link["rel"] == "item":
                item = json.loads((folder / name / link["href"]).read_text())
                feed.deliveries.append(Delivery(item, name, feed.night_of(_day(item, name) - timedelta(days=ahead))))
    _landsat_events(feed, draw, nights)
    _modis_events(feed, draw, nights)
    return feed


def _day(item: dict[str, Any], collection: str) -> date:
    if collection == LANDSAT:
        return date.fromisoformat(item["properties"]["datetime"][:10])
    year, day = item["id"].split(".A")[1][:4], item["id"].split(".A")[1][4:7]
    return date(int(year), 1, 1) + timedelta(days=int(day) - 1)


def _landsat_events(feed: Feed, draw: random.Random, nights: int) -> None:
    plain = [d for d in feed.deliveries if d.collection == LANDSAT and d.item["id"].endswith("T1")]
    usual = [d for d in plain if 0 < d.first < nights - 1]
    count = max(1, nights // 6)
    for delivery in draw.sample(usual, count):
        delivery.first = min(delivery.first + draw.randint(2, 4), nights - 1)
        feed.say(delivery.first, f"Landsat of {_day(delivery.item, LANDSAT)} comes late")
    for delivery in draw.sample([d for d in usual if d.first < nights - 1], count):
        # First in real time, then as tier 1 with other values.
        early = Delivery(_renamed(delivery.item, delivery.item["id"].replace("_T1", "_RT")), LANDSAT, delivery.first)
        early.item["properties"]["landsat:collection_category"] = "RT"
        delivery.first = min(delivery.first + 3, nights - 1)
        early.last = delivery.first - 1
        _brighten(feed.folder / LANDSAT, delivery.item, early.item)
        feed.deliveries.append(early)
        feed.say(delivery.first, f"Landsat of {_day(delivery.item, LANDSAT)} is tier 1 instead of real time")
    old = [d for d in plain if d.first == 0]
    for delivery in draw.sample(old, 1):
        delivery.last = nights // 2
        feed.say(nights // 2 + 1, f"Landsat of {_day(delivery.item, LANDSAT)} is withdrawn")
    for delivery in draw.sample([d for d in old if d.last > nights], 1):
        feed.in_place[nights // 3] = delivery
        feed.say(nights // 3, f"Landsat of {_day(delivery.item, LANDSAT)} changes in place")


def _modis_events(feed: Feed, draw: random.Random, nights: int) -> None:
    usual = [d for d in feed.deliveries if d.collection == MODIS and d.first < nights - 1]
    for delivery in draw.sample(usual, max(1, nights // 5)):
        delivery.first = min(delivery.first + draw.randint(1, 3), nights - 1)
        feed.say(delivery.first, f"MODIS of {_day(delivery.item, MODIS)} comes late")
    for delivery in draw.sample(usual, max(1, nights // 5)):
        again = Delivery(
            _renamed(delivery.item, delivery.item["id"][:-1] + "9"), MODIS, min(delivery.first + 3, nights - 1)
        )
        _brighten(feed.folder / MODIS, delivery.item, again.item)
        feed.deliveries.append(again)
        feed.say(again.first, f"MODIS of {_day(delivery.item, MODIS)} is reprocessed")


# ---------------------------------------------------------------- what a night did


def _files(path: Path) -> dict[tuple[int, int, int], tuple[int, int]]:
    """What tells a shard of a cube from another one in its place, by block."""
    found = {}
    for shard in path.glob("red/c/*/*/*"):
        first, row, column = (int(part) for part in shard.parts[-3:])
        facts = shard.stat()
        found[first, row, column] = facts.st_ino, facts.st_mtime_ns
    return found


def _whole(path: Path) -> Any:
    return store.open_counts(path).load()


def _had_to(before: Any, after: Any, path: Path) -> set[tuple[int, int, int]]:
    """Blocks of the fused cube that could not stay as they were."""
    facts, found = store.layout_facts(path), set()
    run, tile = facts["run"], facts["tile"]
    known = 0 if before is None else before.sizes["time"]
    for block in store.blocks_of(path):
        key = block.first // run, block.window.top // tile, block.window.left // tile
        rows, columns = block.window.slices
        cells = block.window.cells(facts["ratio"]).slices
        if block.last > known:
            found.add(key)
            continue
        for name, new in after.data_vars.items():
            space = (rows, columns) if new.dims[1:] == ("y", "x") else cells
            where = (slice(block.first, block.last), *space)
            if not np.array_equal(new.values[where], before[name].values[where]):
                found.add(key)
    return found


def differences(one: Path, other: Path) -> int:
    """Values, days and marks of three cubes that differ from those of another run."""
    count = 0
    for name in NAMES:
        first, second = _whole(one / name), _whole(other / name)
        if not np.array_equal(first.time.values, second.time.values) or set(first.data_vars) != set(second.data_vars):
            return -1
        arrays = [*first.data_vars, "aoi", *(["provisional"] if name == "fused.zarr" else [])]
        count += sum(int((first[key].values != second[key].values).sum()) for key in arrays)
    return count


def _arguments(feed: Feed, dates: str) -> tuple[str, ...]:
    return ("--catalog", str(feed.folder / "catalog.toml"), "--dates", dates, *OPTIONS)


def one_night(feed: Feed, night: int, run: Path, kill: int | None) -> dict[str, Any]:
    """Deliver, run, and compare with a run from nothing."""
    feed.deliver(night)
    nightly = Plan(run.parent, _arguments(feed, f"P{FIRST}D"), run, (), 0, 0.0)
    there = (run / "fused.zarr").exists()
    before, files = _whole(run / "fused.zarr") if there else None, {name: _files(run / name) for name in NAMES}
    killed = kill is not None and nightly.finish(run, Trap(kill, "half")) < 0
    started = time.monotonic()
    code = nightly.finish(run)
    seconds = time.monotonic() - started
    if code:
        raise SystemExit(f"night {night} ended with {code}: {run.with_suffix('.txt').read_text()[-2000:]}")
    scratch = run.with_name("scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    first = feed.world.start
    fresh = Plan(run.parent, _arguments(feed, f"{first}/{feed.newest(night)}"), scratch, (), 0, 0.0)
    started = time.monotonic()
    if fresh.finish(scratch):
        raise SystemExit(scratch.with_suffix(".txt").read_text()[-2000:])
    after, now = _whole(run / "fused.zarr"), {name: _files(run / name) for name in NAMES}
    others = {name: {key for key, facts in now[name].items() if files[name].get(key) != facts} for name in NAMES}
    landsat, modis, written = (others[name] for name in NAMES)
    had_to = _had_to(before, after, run / "fused.zarr")
    told = json.loads((run / "run.json").read_text())["nights"][-1]
    return {
        "night": night, "newest": feed.newest(night).isoformat(), "events": feed.events.get(night, []),
        "killed": killed, "differences": differences(run, scratch),
        "blocks": len(now["fused.zarr"]), "written": len(written),
        "had_to": len(had_to), "missed": len(had_to - written), "needless": len(written - had_to),
        "landsat_written": len(landsat), "landsat_blocks": len(now["landsat.zarr"]),
        "modis_written": len(modis), "modis_blocks": len(now["modis.zarr"]),
        "compared": told["fused.zarr"]["compared"], "provisional": len(told["provisional"]),
        "damages": sum(len(store.check(run / name)) for name in NAMES),
        "seconds": round(seconds, 2), "seconds_from_nothing": round(time.monotonic() - started, 2),
    }  # fmt: skip


def count(nights: int, size: int, seed: int, folder: Path) -> dict[str, Any]:
    """All nights, and their sums."""
    feed, found = make_feed(folder / "world", nights, size, seed), list[dict[str, Any]]()
    draw = random.Random(seed)
    for night in range(nights):
        kill = draw.randint(5, 30) if night % 2 else None
        found.append(one_night(feed, night, folder / "run", kill))
        out.print(json.dumps(found[-1]), highlight=False, soft_wrap=True)
    return {"nights": found, "sums": sums(found[1:]), "size": size, "seed": seed}


def sums(found: Sequence[dict[str, Any]]) -> dict[str, int]:
    """What all nights but the first did together."""
    total: Counter[str] = Counter()
    for night in found:
        total["equal"] += night["differences"] == 0
        keys = ("killed", "written", "had_to", "missed", "needless", "blocks", "landsat_written", "landsat_blocks")
        for key in (*keys, "modis_written", "modis_blocks", "compared", "damages"):
            total[key] += int(night[key])
    return {"nights": len(found), **total}


def page(document: dict[str, Any]) -> str:
    """The figures as Markdown."""
    sums, nights = document["sums"], document["nights"]
    lines = [
        "# Every night",
        "",
        f"`python -m benchmarks.nights`: a demo world of {document['size']} x {document['size']} pixels, {len(nights)} "
        f"nights {STEP} days apart, `--dates P{FIRST}D` on one run folder by `delta`. Imagery comes late, is "
        "reprocessed, withdrawn, or changed in place. Every other night is killed on its way (half of a file lost) and "
        "run again. *Had to*: blocks of the fused cube with new days, or in which any value became another; *written*: "
        "blocks whose files are others.",
        "",
        f"* After {sums['equal']} of {sums['nights']} nights (and the first) all arrays of the three cubes, their days "
        "and the marks of provisional days are those of a run from nothing of the same catalog; "
        f"`verify` finds {sums['damages']} damaged files.",
        f"* {sums['killed']} nights were killed.",
        f"* Fused: {sums['written']} of {sums['blocks']} blocks were written, {sums['had_to']} had to be, "
        f"{sums['missed']} of these were missed, {sums['needless']} were written without need; "
        f"{sums['compared']} were compared with their input.",
        f"* Landsat: {sums['landsat_written']} of {sums['landsat_blocks']} blocks were written; MODIS: "
        f"{sums['modis_written']} of {sums['modis_blocks']}.",
        "",
        "| newest | what was odd | written | had to | blocks | Landsat | MODIS | provisional | same as from nothing |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for night in nights:
        odd = "; ".join(night["events"] + ["killed"] * night["killed"])
        lines.append(
            f"| {night['newest']} | {odd} | {night['written']} | {night['had_to']} | {night['blocks']} | "
            f"{night['landsat_written']} | {night['modis_written']} | {night['provisional']} | "
            f"{'yes' if night['differences'] == 0 else night['differences']} |"
        )
    return "\n".join(lines) + "\n"


def command(
    nights: Annotated[int, typer.Option(min=2, help="Nights.")] = 30,
    size: Annotated[int, typer.Option(min=64, help="Pixels along the world.")] = 128,
    seed: Annotated[int, typer.Option(help="Of what comes when.")] = 0,
    to: Annotated[Path, typer.Option(help="File of the figures.")] = RESULTS,
    document: Annotated[Path, typer.Option("--page", help="Markdown of the figures.")] = DOCUMENT,
) -> None:
    """Simulate nights and count what was written and what differs from a run from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        found = count(nights, size, seed, Path(folder))
    write_json(to, found)
    document.write_text(page(found), encoding="utf-8")
    if found["sums"]["equal"] < found["sums"]["nights"] or found["sums"]["missed"] or found["nights"][0]["differences"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(command)
