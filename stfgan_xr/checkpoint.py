"""Checkpoints: tensors in a safetensors file, everything else in a JSON file beside it, tied by SHA-256.

Reading one never runs code of the file. A checkpoint is named by either file, by their common stem, or by a folder
that holds one checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from stfgan_xr.errors import InputError

FORMAT = 1
LARGEST_TENSORS = 2 << 30
LARGEST_CONFIG = 4 << 20
DTYPES = ("float16", "float32", "int64", "uint8")
_FOLDER = Path(__file__).parent / "weights"
_HELD: dict[Path, bytes] = {}
"""Files that a worker was sent, under the names that they have where they came from."""
_HOLDERS = Counter[Path]()
"""How often each checkpoint was sent and not taken back: several runs may use the same workers."""

Array = npt.NDArray[Any]


def resolve(path: str | os.PathLike[str]) -> Path:
    """The tensors file of a checkpoint.

    Raises
    ------
    InputError
        If there is none, or a folder holds several.
    """
    given = Path(path)
    if given not in _HELD and given.is_dir():
        found = sorted(given.glob("*.safetensors"))
        if len(found) != 1:
            names = ", ".join(file.name for file in found) or "none"
            raise InputError(
                f"{given}: expected one checkpoint (*.safetensors) in the folder, found {names}; name the file"
            )
        return found[0]
    tensors = given if given.suffix == ".safetensors" else given.with_suffix(".safetensors")
    if tensors not in _HELD and not tensors.is_file():
        raise InputError(f"{given}: no such checkpoint; name a NAME.safetensors file with NAME.json beside it")
    return tensors


def _read(path: Path, largest: int) -> bytes:
    if path in _HELD:
        return _HELD[path]
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > largest:
        raise InputError(f"{path}: larger than {largest} bytes; this is not a checkpoint of stfgan_xr")
    return content


def contents(path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Both files of a checkpoint as they are, tensors and JSON, for :func:`hold` in another process.

    Raises
    ------
    InputError
        If one is missing or too large.
    """
    file = resolve(path)
    return _read(file, LARGEST_TENSORS), _read(file.with_suffix(".json"), LARGEST_CONFIG)


def hold(path: Path, tensors: bytes, config: bytes) -> None:
    """From now on a checkpoint is these bytes in this process, whatever is on its disk, until as many :func:`drop`."""
    _HELD.update({path: tensors, path.with_suffix(".json"): config})
    _HOLDERS[path] += 1


def drop(path: Path) -> None:
    """Forget what is held of a checkpoint, if nobody else had it held."""
    _HOLDERS[path] -= 1
    if _HOLDERS[path] > 0:
        return
    for name in (path, path.with_suffix(".json")):
        _HELD.pop(name, None)
    del _HOLDERS[path]


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON side of a checkpoint.

    Returns
    -------
    dict
        ``format``, ``method``, ``bands``, ``sha256`` and what the method stores.

    Raises
    ------
    InputError
        If the file is missing, too large, not JSON or not of this format.
    """
    file = resolve(path).with_suffix(".json")
    try:
        config = json.loads(_read(file, LARGEST_CONFIG))
    except (ValueError, RecursionError):
        raise InputError(f"{file}: not JSON; take the file that was written with the checkpoint") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise InputError(f"{file}: not a checkpoint of format {FORMAT}; write it again with this version")
    bands = config.get("bands")
    if not (isinstance(bands, list) and bands and all(isinstance(band, str) for band in bands)):
        raise InputError(f"{file}: 'bands' must be a list of band names, not {bands!r}")
    if not all(isinstance(config.get(key), str) for key in ("method", "sha256")):
        raise InputError(f"{file}: 'method' and 'sha256' must be texts")
    return config


def require(config: Mapping[str, Any], method: str, bands: Sequence[str] | None = None) -> None:
    """Refuse a checkpoint of another method or of other bands; one of ``subsets`` is for any of its bands.

    Raises
    ------
    InputError
        With both sides named.
    """
    if config["method"] != method:
        raise InputError(f"the checkpoint holds {config['method']!r}, not {method!r}; choose another --model")
    if bands is None or tuple(config["bands"]) == tuple(bands):
        return
    if config.get("subsets") is not True or not set(bands) <= set(config["bands"]):
        raise InputError(
            f"the checkpoint was trained for the bands {', '.join(config['bands'])}, not {', '.join(bands)}; "
            "choose these bands or train another one (python -m pipelines.train)"
        )


def load_tensors(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]] | None = None, sha256: str | None = None
) -> dict[str, Array]:
    """The tensors of a checkpoint, float16 as float32.

    Parameters
    ----------
    path
        The checkpoint.
    shapes
        Names and shapes that the method expects; None takes what is there.
    sha256
        Hash that the file must have, by default the one in its JSON file.

    Raises
    ------
    InputError
        If the file is missing, too large, not safetensors, of another hash, or holds other names, shapes, types or
        numbers that are not finite.
    """
    file = resolve(path)
    content = _read(file, LARGEST_TENSORS)
    expected = sha256 if sha256 is not None else read_config(file)["sha256"]
    if hashlib.sha256(content).hexdigest() != expected:
        raise InputError(
            f"{file}: its SHA-256 is not the one expected ({expected[:12]}...); the file or its .json changed"
        )
    try:
        tensors = safetensors.numpy.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a safetensors file ({str(error)[:120]})") from None
    _check(file, tensors, shapes)
    return {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in tensors.items()}


def _check(file: Path, tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    if shapes is not None and tensors.keys() != shapes.keys():
        wrong = sorted(tensors.keys() ^ shapes.keys())
        raise InputError(
            f"{file}: {len(wrong)} tensors do not belong to or lack for this architecture, such as {wrong[0]!r}"
        )
    for name, value in tensors.items():
        if str(value.dtype) not in DTYPES:
            raise InputError(f"{file}: {name!r} is {value.dtype}; weights are {', '.join(DTYPES)}")
        if shapes is not None and value.shape != tuple(shapes[name]):
            raise InputError(
                f"{file}: {name!r} has the shape {value.shape}, the architecture needs {tuple(shapes[name])}"
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"{file}: {name!r} holds numbers that are not finite")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def save(path: str | os.PathLike[str], tensors: Mapping[str, Array], config: Mapping[str, Any]) -> Path:
    """Write a checkpoint; each file is replaced whole, the JSON last.

    Parameters
    ----------
    path
        ``NAME.safetensors`` (any other suffix is exchanged); the folder is made.
    tensors
        Arrays by name, float16, float32, int64 or uint8.
    config
        JSON-able facts with at least ``method`` and ``bands``; ``format`` and ``sha256`` are added.

    Returns
    -------
    Path
        The tensors file.
    """
    file = Path(path).with_suffix(".safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = safetensors.numpy.save({name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())})
    facts = dict(config) | {"format": FORMAT, "sha256": hashlib.sha256(content).hexdigest()}
    _replace(file, content)
    _write_config(file, facts)
    return file


def _write_config(file: Path, facts: Mapping[str, Any]) -> None:
    _replace(file.with_suffix(".json"), (json.dumps(facts, indent=1, sort_keys=True) + "\n").encode())


def annotate(path: str | os.PathLike[str], **facts: Any) -> None:
    """Add or exchange facts of the JSON side of a checkpoint; the tensors stay as they are.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    file = resolve(path)
    _write_config(file, read_config(file) | facts)


def shipped(bands: Sequence[str] | None = None, method: str = "stfgan") -> Path:
    """The checkpoint that comes with the package.

    Raises
    ------
    InputError
        If there is none for the method, or it is not for the bands.
    """
    file = _FOLDER / f"{method}.safetensors"
    if not file.is_file():
        raise InputError(f"no weights of {method!r} come with the package; train some (python -m pipelines.train)")
    require(read_config(file), method, bands)
    return file
