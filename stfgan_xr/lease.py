"""A run folder is one run's at a time: a lease that says who holds it, and that expires if nobody renews it.

It spares two runs each other's work and confusion. Pixels do not rest on it: blocks are whole shards, and two runs that
both believed that they hold a folder would write the same bytes. That is why a store that knows no conditional requests
will do.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from stfgan_xr.errors import ResourceError, StfganError
from stfgan_xr.files import Folder, LocalFolder, to_json

log = logging.getLogger(__name__)
LEASE = "lease.json"
SECONDS = 120.0
"""How long a lease holds after it was renewed; clocks of machines may differ by less."""
RENEWED = SECONDS / 6
SETTLE = 0.5
"""Seconds after which a lease that was taken over is looked at again: of two that took it over one remains."""
ATTEMPTS = 5
"""How often a lease is asked for that is given back at that moment."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder: a process of a machine, and until when (seconds since 1970) unless it is renewed."""

    token: str
    machine: str
    host: str
    pid: int
    started: float
    until: float

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.started))
        return f"process {self.pid} on {self.host} since {since}"

    @property
    def is_gone(self) -> bool:
        """Whether it let the lease expire, or was a process of this machine that is no more."""
        return time.time() > self.until or (self.machine == _machine() and not _runs(self.pid, self.started))


def _machine() -> str:
    """What two processes have in common that see each other's numbers."""
    known = [str(uuid.getnode())]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", Path.readlink)):
        try:
            known.append(str(read(Path(path))).strip())
        except OSError:
            continue
    return "/".join(known)


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        # The number may have gone to another process since.
        return bool(process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= started + 1)
    except psutil.NoSuchProcess:
        return False


def holder(folder: Folder) -> Holder | None:
    """Who a folder's lease names; None if there is none, or none that can be read."""
    content = folder.read(LEASE)
    try:
        stated = json.loads(content or b"null")
        return Holder(
            str(stated["token"]), str(stated["machine"]), str(stated["host"])[:200], int(stated["pid"]),
            float(stated["started"]), float(stated["until"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, OverflowError):
        return None


def refuse_others(folder: Folder, token: str) -> None:
    """Raise :class:`ResourceError` if a folder's lease is not that of a token.

    What a worker asks before it writes: a scheduler that others started lets it end a block whose run was killed, when
    the next run may have made that block from other imagery already.
    """
    now = holder(folder)
    if now is None or now.token != token:
        raise ResourceError(f"{folder}: the run that asked for this block has ended, and another one may have begun")


class Lease:
    """A lease that this process holds; see :func:`held`."""

    def __init__(self, folder: Folder) -> None:
        self.folder, self.token, self.started = folder, uuid.uuid4().hex, time.time()
        self.renewed = self.started
        self._ended = threading.Event()

    def _content(self, now: float) -> bytes:
        mine = Holder(self.token, _machine(), socket.gethostname(), os.getpid(), self.started, now + SECONDS)
        return to_json(asdict(mine))

    def take(self) -> None:
        """Take the folder, from a holder that is gone too.

        Raises
        ------
        ResourceError
            If somebody holds it, who is named.
        """
        for _ in range(ATTEMPTS):
            if self.folder.create(LEASE, self._content(time.time())):
                return
            now = holder(self.folder)
            if now is not None or self.folder.read(LEASE) is not None:
                break
            # Given back between the two: whoever makes the next one first has it.
        if now is not None and not now.is_gone:
            self._refuse(now)
        if now is not None:
            log.warning("%s: the run of %s ended without a word; going on with it", self.folder, now)
        # Written over, not deleted: whoever begins in between would find nothing, and not wait to see who was last.
        self.folder.write(LEASE, self._content(time.time()))
        time.sleep(SETTLE)
        now = holder(self.folder)
        if now is None or now.token != self.token:
            self._refuse(now)

    def _refuse(self, now: Holder | None) -> None:
        raise ResourceError(
            f"{self.folder} is in use by {now or 'another run'}; wait until it ends, or stop it and run the same "
            f"command again (a lease that nobody renews ends after {SECONDS:.0f} s)"
        )

    def check(self) -> None:
        """Raise :class:`ResourceError` if the lease is lost: expired, or another's."""
        if time.time() - self.renewed > SECONDS:
            raise ResourceError(f"{self.folder} could not be reached for {SECONDS:.0f} s; run the same command again")

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED):
            try:
                now = holder(self.folder)
                if now is not None and now.token != self.token:
                    self.renewed = 0.0
                    return
                begun = time.time()  # others count from there, however long writing takes
                self.folder.write(LEASE, self._content(begun))
                self.renewed = begun
            except (StfganError, OSError) as error:
                log.warning("the lease of %s cannot be renewed: %s", self.folder, error)

    def release(self) -> None:
        """Let go of the folder."""
        self._ended.set()
        now = holder(self.folder)
        if now is not None and now.token == self.token:
            self.folder.delete_file(LEASE)


@contextmanager
def held(folder: Folder) -> Iterator[Lease]:
    """Hold a run folder; renewed in the background while it is held.

    Parameters
    ----------
    folder
        The run folder; made if it is not there.

    Raises
    ------
    ResourceError
        If another run holds it, which is named.

    >>> import tempfile
    >>> from stfgan_xr.files import as_folder
    >>> folder = as_folder(tempfile.mkdtemp())
    >>> with held(folder) as lease:
    ...     lease.check()
    ...     holder(folder).pid == os.getpid()
    True
    >>> holder(folder) is None
    True
    """
    absent = isinstance(folder, LocalFolder) and not folder.path.exists()
    lease = Lease(folder)
    lease.take()
    renewal = threading.Thread(target=lease._renew, name="lease", daemon=True)
    renewal.start()
    try:
        yield lease
    finally:
        lease._ended.set()
        renewal.join(5)
        try:
            lease.release()
        except (StfganError, OSError) as error:  # not over what ended the run
            log.warning("the lease of %s cannot be given back: %s", folder, error)
        if absent and isinstance(folder, LocalFolder):
            with suppress(OSError):  # a run that was refused leaves nothing, one that wrote something is not empty
                folder.path.rmdir()
