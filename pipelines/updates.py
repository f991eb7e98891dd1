"""How the fused cube of a run follows its imagery: which blocks are to be made again, and what is said of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from pipelines.console import out, track
from pipelines.cubes import Crew, megapixels, records_of
from stfgan_xr import days as calendar
from stfgan_xr import fusion, store
from stfgan_xr.cluster import Failed
from stfgan_xr.cluster import run as run_tasks
from stfgan_xr.files import Folder
from stfgan_xr.lineage import Change, touching
from stfgan_xr.predictors import is_fitted, wants_archive

INPUTS = f"{store.RECORDS}/inputs.json"
"""In the fused cube: the digests that each block of the imagery has had since the cube was last complete."""
NIGHTS = 366
"""Commands that run.json remembers."""
NEW_DAYS, UNFINISHED = "new days", "unfinished"
NAMES = {"landsat": "Landsat", "modis": "MODIS"}

Versions = dict[str, dict[str, list[str]]]


def _versions(run: Folder) -> dict[str, dict[str, str]]:
    """The digest of each block of the imagery; of Landsat without a clear pixel, which nobody uses, an empty one."""
    landsat, modis = (records_of(run / f"{cube}.zarr") for cube in NAMES)
    return {
        "landsat": {name: record["sha256"] if record.get("clear", 1) else "" for name, record in landsat.items()},
        "modis": {name: record["sha256"] for name, record in modis.items()},
    }


def _read_versions(result: Folder) -> Versions | None:
    try:
        found: Versions = json.loads(result.read(INPUTS) or b"null")
    except ValueError:
        return None
    return found


def note_inputs(run: Folder, result: Folder) -> list[Change] | None:
    """What became another in the imagery since the fused cube was last complete; None if nobody knows.

    All versions that blocks of it may have been made from are written down before any of them is made: what changes
    and changes back, with a kill in between, is a change.
    """
    seen, now = _read_versions(result), _versions(run)
    if seen is None:
        result.write_json(INPUTS, {cube: {name: [sha] for name, sha in blocks.items()} for cube, blocks in now.items()})
        return None
    merged: Versions = {}
    for cube, blocks in now.items():
        before = seen.get(cube, {})
        names = sorted({*before, *blocks})
        merged[cube] = {name: sorted({*before.get(name, [""]), blocks.get(name, "")}) for name in names}
    if merged != seen:
        result.write_json(INPUTS, merged)
    return list(_changes(run, merged))


def _changes(run: Folder, versions: Versions) -> Iterator[Change]:
    for cube, blocks in versions.items():
        path = run / f"{cube}.zarr"
        days = [calendar.to_number(day) for day in store.days_of(path)]
        for block in store.blocks_of(path):
            if len(blocks.get(block.name, ())) > 1:
                part = days[block.first : block.last]
                yield Change(cube, (min(part), max(part)), block.window)


def forget_versions(run: Folder, result: Folder) -> None:
    """Of a cube all of whose blocks are made from what is there now."""
    now = {cube: {name: [sha] for name, sha in blocks.items()} for cube, blocks in _versions(run).items()}
    if _read_versions(result) != now:
        result.write_json(INPUTS, now)


def stale_blocks(
    job: fusion.Job, result: Folder, changes: Sequence[Change] | None, crew: Crew
) -> tuple[dict[str, list[str]], int]:
    """Blocks whose input is not what they were made from, by name with what changed; and how many were looked at.

    Only what may have seen a change is looked at: its inputs are read and compared, nothing is predicted.

    Parameters
    ----------
    job
        The fusion.
    result
        The fused cube.
    changes
        From :func:`note_inputs`.
    crew
        Who does it.
    """
    records, suspects = records_of(result), dict[store.Block, list[str]]()
    everywhere = is_fitted(job.predictor) or wants_archive(job.predictor)
    for block in job.layout.blocks():
        record = records.get(block.name)
        if record is None or record.get("outside"):
            continue
        if changes is None or "reads" not in record:
            suspects[block] = ["unknown"]
        elif everywhere and any(change.cube == "landsat" for change in changes):
            suspects[block] = ["landsat"]
        elif found := touching(record["reads"], job.reads(block), changes):
            suspects[block] = found
    stale, blocks = dict[str, list[str]](), list(suspects)
    results = run_tasks(job.lineage_tasks(blocks), crew.client, crew.minutes) if blocks else ()
    for notes in track("comparing", results, len(blocks), megapixels(job.layout)) if blocks else ():
        if crew.lease is not None:
            crew.lease.check()
        if isinstance(notes, Failed):
            block = blocks[notes.number]
            stale[block.name] = suspects[block]
            continue
        record = records[notes["block"]]
        if record.get("inputs") != notes["inputs"]:
            stale[record["block"]] = next(why for block, why in suspects.items() if block.name == record["block"])
        elif record["reads"] != notes["reads"]:
            store.note(result, record | notes)
    return stale, len(blocks)


def describe_blocks(
    layout: store.Layout, pending: Sequence[store.Block], stale: Mapping[str, list[str]], had: Sequence[date]
) -> dict[str, Any]:
    """What is written of a fused cube and why, for ``run.json``.

    Parameters
    ----------
    layout
        Of the cube.
    pending
        The blocks that are written.
    stale
        Those of them whose input changed, and what changed.
    had
        The days that the cube had.
    """
    reasons, written = Counter[str](), dict[str, dict[str, Any]]()
    for block in pending:
        days = layout.days[block.first : block.last]
        why = stale.get(block.name) or ([NEW_DAYS] if set(days) - set(had) else [UNFINISHED])
        reasons.update(why)
        entry = written.setdefault(f"{days[0]}/{days[-1]}", {"blocks": 0, "why": []})
        entry["blocks"] += 1
        entry["why"] = sorted({*entry["why"], *why})
    added = [day.isoformat() for day in layout.days if day not in set(had)]
    return {"blocks": len(pending), "of": sum(1 for _ in layout.blocks()), "why": dict(reasons), "written": written} | (
        {"added": added} if added else {}
    )


def night(crew: Crew, provisional: Sequence[str]) -> dict[str, Any]:
    """What one command did, as ``run.json`` keeps it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"at": now, **crew.changes, "provisional": list(provisional)}


def _span(days: Sequence[str]) -> str:
    count = "1 day" if len(days) == 1 else f"{len(days)} days"
    return f"{count} ({days[0]}{f' to {days[-1]}' if len(days) > 1 else ''})"


def _imagery(name: str, changes: Mapping[str, Any]) -> str:
    kinds = {"added": "added", "late": "of them late", "changed": "changed", "withdrawn": "withdrawn"}
    parts = [f"{_span(changes[key])} {text}" for key, text in kinds.items() if changes.get(key)]
    return f"{name}: {', '.join(parts) or 'as before'}"


def say_night(document: Mapping[str, Any]) -> None:
    """Say what was added, what was made again and why, and what may still change."""
    fused, provisional = document["fused.zarr"], document["provisional"]
    lines = [f"days: {_span(fused['added'])} added" if "added" in fused else "days: as before"]
    lines += [_imagery(name, document[f"{cube}.zarr"]) for cube, name in NAMES.items()]
    why = ", ".join(f"{count} for {NAMES.get(reason, reason)}" for reason, count in fused["why"].items())
    compared = f", {fused['compared']} compared with their input" if fused["compared"] else ""
    lines.append(f"fused: {fused['blocks']} of {fused['of']} blocks written{f' ({why})' if why else ''}{compared}")
    if provisional:
        lines.append(f"provisional: {_span(provisional)}, made again when a later Landsat day comes")
    out.tell(lines, {"night": document})
