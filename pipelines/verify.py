"""Whether every chunk of a run's cubes is what was written; and what is not, made again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from dask.delayed import delayed

from pipelines import cubes, fuse
from pipelines.console import Log, main, out, track
from pipelines.imagery import RUN, Request, are_of, open_source, read_area
from stfgan_xr import store
from stfgan_xr.cluster import ATTEMPTS, Failed, cores
from stfgan_xr.cluster import run as run_tasks
from stfgan_xr.errors import IncompleteError, InputError, ResourceError
from stfgan_xr.files import Folder, LocalFolder, as_folder
from stfgan_xr.lease import held
from stfgan_xr.predictors.methods import TRAINED, make

Found = dict[str, list[store.Damage]]
ROOT = store.Damage("zarr.json", "missing or damaged, and with it all of the cube")


def read_run(folder: Folder) -> dict[str, Any]:
    """The ``run.json`` of a run folder.

    Raises
    ------
    InputError
        If there is none, or it is damaged.
    """
    content = folder.read(RUN)
    if content is None:
        raise InputError(f"{folder}: not a run folder, it has no {RUN}")
    if (document := cubes.parse_run(content)) is None:
        raise InputError(f"{folder / RUN} is damaged; run the same command again with --overwrite")
    return document


def names_of(document: dict[str, Any]) -> tuple[str, ...]:
    """The cubes that a run is to have."""
    return fuse.CUBES if "method" in document["request"] else fuse.CUBES[:2]


def look_at(folder: Folder, names: tuple[str, ...], crew: cubes.Crew | None = None) -> Found:
    """What is missing or damaged of each cube; of those that have something.

    Parameters
    ----------
    folder
        The run folder.
    names
        Of its cubes.
    crew
        Who reads them; by default this process does.

    Raises
    ------
    ResourceError
        If a block cannot be checked, which says nothing about it.
    """
    found = {name: _look(folder / name, name, crew or cubes.Crew()) for name in names}
    return {name: damages for name, damages in found.items() if damages}


def _look(path: Folder, name: str, crew: cubes.Crew) -> list[store.Damage]:
    try:
        if not store.is_there(path):
            return [store.Damage("zarr.json", "there is no such cube yet")]
        damages, blocks = store.check_frame(path), store.blocks_of(path)
    except InputError:
        return [ROOT]
    found = list[store.Damage]()
    for some in track(name, _checked(path, blocks, crew), len(blocks), _megapixels(blocks[0])):
        found += some
    # Workers end in any order.
    damages += sorted(found, key=lambda damage: (damage.block or "", damage.key)) or store.check_seal(path)
    if not damages:
        out.print(
            f"{name}: {len(blocks)} blocks, {len(blocks) * len(store.variables_of(path))} chunks, all as recorded"
        )
    return damages


def _checked(path: Folder, blocks: list[store.Block], crew: cubes.Crew) -> Iterator[list[store.Damage]]:
    """What is wrong with each block, as they are checked."""
    if crew.client is None:
        with ThreadPoolExecutor(cores()) as pool:
            # Decompression and SHA-256 leave the interpreter free.
            yield from pool.map(partial(store.check_block, path), blocks)
        return
    tasks = (delayed(store.check_block, pure=False)(path, block) for block in blocks)
    for result in run_tasks(tasks, crew.client, crew.minutes):
        if isinstance(result, Failed):
            name = blocks[result.number].name
            raise ResourceError(f"{path}: {name} failed to be checked {ATTEMPTS} times ({result.why})")
        yield result


def _megapixels(block: store.Block) -> float:
    return block.window.shape[0] * block.window.shape[1] * (block.last - block.first) / 1e6


def _lines(found: Found) -> Iterator[str]:
    for name, damages in found.items():
        for damage in damages:
            yield f"{name}/{damage}"


def _recorded_run(folder: Folder, document: dict[str, Any], request: Request, ratio: int) -> fuse.Run:
    """The fusion that a finished run was made by, adapted and guarded as it was."""
    asked, weights = document["request"], document.get("weights")
    method = document.get("guard", {}).get("used", asked["method"])
    if weights is not None and not Path(weights).is_file() and isinstance(folder, LocalFolder):
        # The folder or the package was moved. Other weights than the recorded ones are refused by their SHA-256.
        adapted = folder.path / "adapted" / "stfgan.safetensors"
        weights = adapted if adapted.is_file() else None
    model = weights if method in TRAINED else None
    tile = document["cubes"]["fused.zarr"]["layout"]["tile"]
    predictor = make(method, request.bands, model, ratio)
    return fuse.Run(
        folder, request, method, predictor, asked["keep_observed"], tile, asked["uncertainty"] is not None,
        asked["model"], asked["adapt"], asked["guard"], asked.get("spread", False),
    )  # fmt: skip


def repair(folder: Folder, document: dict[str, Any], crew: cubes.Crew) -> None:
    """Make again what is damaged of a run, from its saved scenes and by its recorded method.

    Raises
    ------
    IncompleteError
        If the run was never finished, which its own command does; if what is made now is not what was there.
    """
    if document["status"] not in ("complete", "cubes"):
        raise IncompleteError(f"{folder} is unfinished; what was damaged is taken back: run its own command again")
    if not are_of(folder, document):
        raise IncompleteError(f"{folder} was being given more imagery when it was killed: run its own command again")
    try:
        request = Request.recorded(document, read_area(folder))
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{folder / RUN} does not say all of the request; run the same command again") from None
    source = open_source(request, folder)
    states = cubes.write_cubes(source, folder, crew)
    if "fused.zarr" in names_of(document):
        run = _recorded_run(folder, document, request, source.ratio)
        fuse.write_fused(run, document["request"], source, states, crew)
    crew.refuse_failed(folder)


def _take_back(folder: Folder, found: Found) -> None:
    for name, damages in found.items():
        if damages == [ROOT]:
            store.remove(folder / name)
        elif store.is_there(folder / name):
            store.reopen(folder / name, damages)


def command(
    run: Annotated[str, typer.Argument(help="Run folder: a local one, or s3://bucket/prefix.")],
    mend: Annotated[
        bool, typer.Option("--repair", help="Make again what is missing or damaged, and just that.")
    ] = False,
    workers: cubes.Workers = None,
    scheduler: cubes.Scheduler = None,
    cluster: cubes.ClusterKind = None,
    block_minutes: cubes.BlockMinutes = cubes.BLOCK_MINUTES,
    log: Log = "text",
) -> None:
    """Check every chunk of a run's cubes against its record.

    Prints what is missing or damaged, one line each, and ends with 6 if there is anything, else with 0. --repair reads
    blocks of Landsat and MODIS again from the scenes of the run, and fuses others again by its method; they must become
    what they were.
    """
    folder, staff = as_folder(run), cubes.Staff(workers, scheduler, cluster, block_minutes)
    folder.check()
    document = read_run(folder)
    names = names_of(document)
    if not mend:
        with staff.gathered(folder) as crew:
            count = _tell(look_at(folder, names, crew))
        if count:
            raise IncompleteError(f"{folder}: {count} files are missing or damaged; --repair makes them again")
        return
    with held(folder) as lease, staff.gathered(folder, lease) as crew:
        found = look_at(folder, names, crew)
        if not (count := _tell(found)):
            return
        _take_back(folder, found)
        with cubes.noting_failures(folder, document, crew):
            repair(folder, document, crew)
        left = look_at(folder, tuple(found), crew)
    if left:
        raise IncompleteError(f"{folder}: still damaged, first {next(_lines(left))}")
    out.print(f"repaired: {count} files", markup=False)


def _tell(found: Found) -> int:
    """Print what is missing or damaged; how many files that are."""
    for line in _lines(found):
        out.print(line, markup=False, soft_wrap=True)
    return sum(map(len, found.values()))


if __name__ == "__main__":
    main(command)
