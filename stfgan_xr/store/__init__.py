"""Cubes on a disk or in an object store: Zarr groups written block by block, so that a run can stop anywhere.

A cube is created whole from its :class:`Layout` with status ``writing``. A block is one spatial tile over a run of
days: whole shards of every variable, written by one task, then recorded in ``blocks/``. :func:`seal` sets the status to
``complete`` when every block has its record. Readers refuse a cube that is not complete, and a complete one without one
of its shards. :func:`check` holds every shard against its record; what it finds :func:`reopen` takes back, so that the
same work writes it again.

Nothing can be renamed in an object store: there a cube has the status ``creating`` until all of it is there, and again
while it is deleted. For everybody that is no cube, and the next run clears it away.
"""

from stfgan_xr.store.blocks import (
    Permit,
    blocks_of,
    days_of,
    identity_of,
    inside,
    is_complete,
    is_there,
    layout_facts,
    missing_blocks,
    note,
    prepare,
    recorded_blocks,
    records,
    refuse_difference,
    remove,
    seal,
    variables_of,
    write_block,
    write_tasks,
)  # fmt: skip
from stfgan_xr.store.cubes import content_digest, open_counts, open_cube
from stfgan_xr.store.groups import Where
from stfgan_xr.store.layout import (
    COARSE,
    FINE,
    Block,
    Layout,
    Variable,
    dataset_layout,
    fill,
    flag_variable,
    observation_variables,
    reflectance_variable,
    tile_for,
)  # fmt: skip
from stfgan_xr.store.template import AOI, INNER_DAYS, RECORDS
from stfgan_xr.store.verify import Damage, check, check_block, check_frame, check_seal, reopen

__all__ = [
    "AOI",
    "COARSE",
    "FINE",
    "INNER_DAYS",
    "RECORDS",
    "Block",
    "Damage",
    "Layout",
    "Permit",
    "Variable",
    "Where",
    "blocks_of",
    "check",
    "check_block",
    "check_frame",
    "check_seal",
    "content_digest",
    "dataset_layout",
    "days_of",
    "fill",
    "flag_variable",
    "identity_of",
    "inside",
    "is_complete",
    "is_there",
    "layout_facts",
    "missing_blocks",
    "note",
    "observation_variables",
    "open_counts",
    "open_cube",
    "prepare",
    "recorded_blocks",
    "records",
    "reflectance_variable",
    "refuse_difference",
    "remove",
    "reopen",
    "seal",
    "tile_for",
    "variables_of",
    "write_block",
    "write_tasks",
]  # fmt: skip
