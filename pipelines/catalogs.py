"""The catalogs of the package, and what is understood of a STAC item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from pipelines.console import AGAIN, main, out
from stfgan_xr.catalog import known_catalogs
from stfgan_xr.errors import InputError
from stfgan_xr.inspection import collections, read_items, understand
from stfgan_xr.sensors import SENSORS


def _list() -> None:
    sensors = Column("sensors", min_width=max(map(len, SENSORS)))
    # What is copied from here is shown whole.
    names = Column("catalog", min_width=max(map(len, known_catalogs())))
    table = Table(names, "side", Column("collection", overflow="fold"), sensors, "years", box=None, pad_edge=False)
    logins: dict[str, str] = {}
    for side, collection in collections():
        logins.setdefault(side.catalog, side.login)
        years = f"{collection.since or ''}-{collection.until.year if collection.until else ''}"
        note = f"{years} not readable" if collection.unreadable else years
        kind = SENSORS[collection.sensors[0]].kind
        table.add_row(side.catalog, kind, collection.name, ", ".join(collection.sensors), note)
    out.print(table)
    for name, login in logins.items():
        out.print(f"login {name}: {login}", markup=False)


def command(
    action: Annotated[str, typer.Argument(help="list, or inspect with the JSON of an item.")] = "list",
    item: Annotated[Path | None, typer.Argument(help="STAC item, FeatureCollection or list of items.")] = None,
) -> None:
    """List the catalogs with their collections, sensors, years and logins; or inspect ITEM.json.

    Inspect prints as JSON what is understood of an item: sensor, day, crs and bands with href, scale, offset and
    nodata; or unused with the reason.
    """
    if action == "list" and item is None:
        _list()
    elif action == "inspect" and item is not None:
        found = read_items(item)
        out.print_json(data=[understand(one) for one in found] if isinstance(found, list) else understand(found))
    else:
        raise InputError("write  python -m pipelines.catalogs  or  python -m pipelines.catalogs inspect ITEM.json")


if __name__ == "__main__":
    main(command, AGAIN)
