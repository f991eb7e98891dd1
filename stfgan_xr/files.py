"""The folders a run lives in, on a disk or in an object store, and small files written in one step.

A :class:`Folder` has the few verbs that a run needs; all else (``store``, the commands) is the same for both kinds. A
name with a scheme, ``s3://bucket/prefix``, is an object store, any other a local folder. The object store is found
and entered by what the environment says (``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID``, ...): a folder knows only its
address, and that is all that travels to workers, is written down or shown.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stfgan_xr.errors import InputError, ResourceError, SourceError, StfganError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

SCHEMES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
"""Object stores, and how the names of their variables in the environment begin."""
RETRY: RetryConfig = {
    "max_retries": 8,
    "retry_timeout": timedelta(minutes=2),
    "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=15), "base": 2},
}
"""A store that fails or asks for patience for a minute or so is waited for."""
CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(minutes=1),
    "timeout": timedelta(minutes=5),  # of a whole request: a part of a shard on a slow line
}
READERS = 16
"""Small files read at once from an object store, where each costs a round trip."""
_PARTIAL = re.compile(r"\..+\.\d+-\d+\.partial|.+\.[0-9a-f]{32}\.partial")
"""Files that are being written: ours, and those of Zarr."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""What file systems without hard links say, those of USB sticks and of many mounts."""
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step: a reader sees the old or the new one, never a part."""
    _replace(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file in one step, with sorted keys: the same document gives the same bytes."""
    _replace(path, to_json(document))


def to_json(document: Any) -> bytes:
    """A JSON file's bytes, with sorted keys."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before what it is to hold is computed.

    Raises
    ------
    InputError
        If its folder is not there, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")


def _replace(path: Path, content: bytes) -> None:
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            # Before it has its name: after a loss of power it would be empty.
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    """Let a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems of networks do that for files only.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")


def _create_here(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


class Folder(ABC):
    """A folder of a run; files in it are named from it on, ``blocks/t00000.json``. It pickles as its address.

    Raises
    ------
    ResourceError
        If something cannot be written or deleted.
    SourceError, InputError
        If something cannot or may not be read, or there is no such bucket.
    """

    @abstractmethod
    def __truediv__(self, name: str) -> Folder:
        """A folder in it."""

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """A whole file, or None if there is none."""

    @abstractmethod
    def write(self, key: str, content: bytes) -> None:
        """Write a file in one step: a reader sees the old or the new one, never a part."""

    @abstractmethod
    def settle(self, keys: Sequence[str]) -> None:
        """Let files that others wrote in it survive a loss of power, as those of :meth:`write` do."""

    @abstractmethod
    def names(self, key: str = "") -> list[str]:
        """Names of the files directly in it, or directly in a folder in it, in order."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether anything is in it."""

    @abstractmethod
    def delete_file(self, key: str) -> None:
        """Delete a file, if there is one."""

    @abstractmethod
    def delete(self, last: str) -> None:
        """Delete all that is in it; where that takes many steps, the file ``last`` goes last."""

    @abstractmethod
    def building(self) -> AbstractContextManager[Folder]:
        """A folder to fill that becomes this one when it is left without an error.

        In one step where folders can be renamed; elsewhere it is this one all along, and what is in it must say
        whether it is finished.
        """

    @abstractmethod
    def reading(self) -> AbstractContextManager[None]:
        """Within it, failures of the store to read are errors of ours."""

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Within it, failures of the store to write are errors of ours."""

    @abstractmethod
    def check(self) -> None:
        """Refuse it as a run folder if that can be told without writing."""

    @abstractmethod
    def sweep(self) -> None:
        """Delete what processes that were killed left half written; nothing else may be writing in it."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> bool:
        """Write a file if there is none; whether there was none."""

    @abstractmethod
    def free(self) -> int | None:
        """Bytes that still fit; None if that is not known."""

    def read_all(self, keys: Sequence[str]) -> list[bytes]:
        """Files that are known to be there, in the order of their names."""
        return [self._read_known(key) for key in keys]

    def _read_known(self, key: str) -> bytes:
        content = self.read(key)
        if content is None:
            raise SourceError(f"{self}/{key} was deleted while it was read")
        return content

    def write_json(self, key: str, document: Any) -> None:
        """Write a JSON file in one step: the same document gives the same bytes."""
        self.write(key, to_json(document))


def as_folder(where: str | Path | Folder) -> Folder:
    """The folder of a name: ``s3://bucket/prefix`` is in an object store, all without a scheme on a disk.

    Raises
    ------
    InputError
        If the scheme is unknown or there is no bucket.

    >>> as_folder("s3://bucket/runs/") / "fused.zarr"
    ObjectFolder(address='s3://bucket/runs/fused.zarr')
    >>> str(as_folder("runs") / "fused.zarr")
    'runs/fused.zarr'
    """
    if isinstance(where, Folder):
        return where
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", str(where), re.DOTALL)
    if found is None:
        return LocalFolder(Path(where))
    scheme, second, rest = found.groups()
    if scheme not in SCHEMES:
        raise InputError(f"{where}: {scheme}:// is not understood; use a local folder or {'://, '.join(SCHEMES)}://")
    parts = [part for part in rest.split("/") if part]
    if not second or not parts or rest.startswith("/") or re.search(r"[?#@%\s]", rest) or {".", ".."} & set(parts):
        raise InputError(f"{scheme}:// without a bucket or with signs that no address has; write {scheme}://bucket/run")
    return ObjectFolder(f"{scheme}://{'/'.join(parts)}")


@dataclass(frozen=True)
class LocalFolder(Folder):
    """A folder on a disk."""

    path: Path

    def __reduce__(self) -> tuple[type[LocalFolder], tuple[Path]]:
        # Workers have other working folders.
        return LocalFolder, (self.path.absolute(),)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name)

    def read(self, key: str) -> bytes | None:
        path = self.path / key
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except PermissionError:
            raise InputError(f"cannot read {path}: permission denied; run as its owner, or choose another") from None

    def write(self, key: str, content: bytes) -> None:
        with self.writing():
            (self.path / key).parent.mkdir(parents=True, exist_ok=True)
            _replace(self.path / key, content)
            self._settle_names([key])

    def settle(self, keys: Sequence[str]) -> None:
        with self.writing():
            for key in keys:
                _fsync(self.path / key)
            self._settle_names(keys)

    def _settle_names(self, keys: Sequence[str]) -> None:
        """Let the names of files survive a loss of power, and those of the folders that they lie in."""
        inner = {parent for key in keys for parent in Path(key).parents}
        for path in sorted(self.path / name for name in inner):
            _fsync(path)
        with suppress(PermissionError):  # it may be closed to readers
            _fsync(self.path.parent)

    def names(self, key: str = "") -> list[str]:
        folder = self.path / key
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def exists(self) -> bool:
        return self.path.exists()

    def delete_file(self, key: str) -> None:
        with self.writing():
            path = self.path / key
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _fsync(path.parent)

    def delete(self, last: str) -> None:
        if not self.path.exists():
            return
        # Renamed first: a kill leaves the whole folder or none.
        gone = self._partial()
        with self.writing():
            shutil.rmtree(gone, ignore_errors=True)
            self.path.rename(gone)
            _fsync(self.path.parent)
            shutil.rmtree(gone)

    def _partial(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial-{os.getpid()}")

    @contextmanager
    def building(self) -> Iterator[LocalFolder]:
        partial = self._partial()
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield LocalFolder(partial)
        partial.rename(self.path)
        _fsync(self.path.parent)

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise ResourceError(f"cannot write {self}: permission denied; choose another --out") from error
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise ResourceError(
                f"cannot write {self}: {os.strerror(error.errno or 0)}; finished blocks are kept: "
                "make room and run the same command again"
            ) from error

    def check(self) -> None:
        there = next((path for path in (self.path, *self.path.absolute().parents) if path.exists()), self.path)
        if there.exists() and not there.is_dir():
            raise InputError(f"--out {self}: {'' if there == self.path else f'{there} '}is a file; choose a folder")

    def sweep(self) -> None:
        with self.writing():
            for beside in self.path.parent.glob(f"{glob.escape(self.path.name)}.partial-*"):
                shutil.rmtree(beside, ignore_errors=True)
            for folder, _, names in os.walk(self.path):
                for name in names:
                    if _PARTIAL.fullmatch(name):
                        (Path(folder) / name).unlink(missing_ok=True)

    def create(self, key: str, content: bytes) -> bool:
        path = self.path / key
        partial = _partial(path)
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(content)
            try:
                # In one step, unlike opening it for exclusive writing: nobody sees it empty.
                os.link(partial, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return _create_here(path, content)
            finally:
                partial.unlink(missing_ok=True)
        return True

    def free(self) -> int | None:
        there = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.is_dir())
        return shutil.disk_usage(there).free


@cache
def open_store(address: str) -> ObjectStore:
    """The store of a folder in an object store, one for each in a process; asks nothing of it."""
    from obstore.store import from_url

    # Given options replace what obstore reads from the environment, which must go on holding.
    allowed = os.environ.get(f"{SCHEMES[address.split(':')[0]]}_ALLOW_HTTP", "")
    options: ClientConfig = {**CLIENT, "allow_http": allowed.lower() in ("1", "true", "yes", "on")}
    return from_url(address, retry_config=RETRY, client_options=options)


def _failures() -> tuple[type[Exception], ...]:
    """What obstore raises if a store fails; what is not there is a FileNotFoundError."""
    from obstore.exceptions import BaseError

    return BaseError, OSError


@dataclass(frozen=True)
class ObjectFolder(Folder):
    """A prefix of an object store."""

    address: str

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self.address}/{name}")

    @property
    def store(self) -> ObjectStore:
        """Its store, whose keys are named from the folder on."""
        return open_store(self.address)

    def read(self, key: str) -> bytes | None:
        with self.reading():
            try:
                return bytes(self.store.get(key).bytes())
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise
                return None

    def write(self, key: str, content: bytes) -> None:
        with self.writing():
            self.store.put(key, content)

    def settle(self, keys: Sequence[str]) -> None:
        """Nothing: an object that is there stays."""

    def names(self, key: str = "") -> list[str]:
        with self.reading():
            found = self.store.list_with_delimiter(key or None)["objects"]
        return sorted(str(item["path"]).rpartition("/")[2] for item in found)

    def exists(self) -> bool:
        with self.reading():
            return any(len(batch) for batch in self.store.list(chunk_size=1))

    def delete_file(self, key: str) -> None:
        with self.writing():
            try:
                self.store.delete(key)
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise

    def delete(self, last: str) -> None:
        with self.writing():
            for batch in self.store.list(chunk_size=1000):
                keys = [item["path"] for item in batch if item["path"] != last]
                if keys:
                    self.store.delete(keys)
        self.delete_file(last)

    @contextmanager
    def building(self) -> Iterator[ObjectFolder]:
        yield self

    def read_all(self, keys: Sequence[str]) -> list[bytes]:
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(self._read_known, keys))

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except _failures() as error:
            reason, by_user = _reason(self.address, error)
            kind: type[StfganError] = InputError if by_user else SourceError
            # Without the cause: what a store answers may name keys.
            raise kind(f"cannot read {self}: {reason}") from None

    @contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except _failures() as error:
            raise ResourceError(
                f"cannot write {self}: {_reason(self.address, error)[0]}; finished blocks are kept: "
                "run the same command again"
            ) from None

    def check(self) -> None:
        try:
            self.exists()
        except (InputError, SourceError) as error:
            raise ResourceError(f"--out: {error}") from None

    def sweep(self) -> None:
        """Nothing: an object is there whole or not at all."""

    def create(self, key: str, content: bytes) -> bool:
        # Some stores ignore the condition and overwrite, so what is there is looked for first.
        if self.read(key) is not None:
            return False
        from obstore.exceptions import AlreadyExistsError

        with self.writing():
            try:
                self.store.put(key, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def free(self) -> int | None:
        return None


_NO_CREDENTIALS = re.compile(
    r"169\.254\.(169\.254|170\.2)|metadata\.google|Missing ?(Account|AccessKeyId|SecretAccessKey)|[Cc]redentials? "
)
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3}[ \w]{0,40})")


def _reason(address: str, error: Exception) -> tuple[str, bool]:
    """Why a store failed, in words that hold nothing it answered but its code; whether it is the user's to mend."""
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    text, bucket = str(error), "/".join(address.split("/")[:3])
    code = _CODE.search(text)
    if _NO_BUCKET.search(text):
        return f"there is no {bucket}; make it or choose another", True
    if "BadScheme" in text:
        return "its endpoint is http, which needs AWS_ALLOW_HTTP=true", True
    if _NO_CREDENTIALS.search(text):
        return "no credentials in the environment; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", True
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"permission denied ({code[1] if code else 'no reason given'}); check the credentials", False
    if status := _STATUS.search(text):
        return f"the store answers {status[1].strip()}{f' ({code[1]})' if code else ''}", False
    if re.search(r"error sending request|HTTP error|timed out|Timeout", text):
        return "the store does not answer; check AWS_ENDPOINT_URL and the network", False
    first = re.sub(r"\?\S*", "", text.partition("\n")[0])
    return f"{type(error).__name__}: {first[:160]}", False
