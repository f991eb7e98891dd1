"""Where tasks run: in this process, on a local cluster, or on a Dask scheduler that is already there."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from dask.delayed import Delayed
from dask.system import cpu_count

from stfgan_xr import deployments
from stfgan_xr.allocation import give_back_freed, keep_freed
from stfgan_xr.deployments import LOST
from stfgan_xr.errors import InputError, ResourceError, StfganError
from stfgan_xr.remote import redact

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
ATTEMPTS = 3
"""How often a task is tried that fails for no known reason."""
MOST_FAILED = 20
"""After so many tasks that failed, and none that did not, the rest is not tried."""
TOO_LONG = 75
"""With which a worker ends whose task took too long."""
WATCHED = ("write_block", "lineage", "check_block")
"""In the names of the tasks of a run that may take long."""
AHEAD = 2
"""Tasks submitted for each worker thread: enough to keep it busy, few enough to keep the graph small."""


def cores() -> int:
    """Processor cores this process may use, of those that its machine, batch job or container has."""
    return cpu_count()


def memory_left() -> int:
    """Bytes that this machine can still give: what is free, within the limits of the control groups this process is in,
    as batch systems, containers and systemd set them."""
    left = int(psutil.virtual_memory().available)
    for group, limit, used in _memory_groups():
        try:
            free = int((group / limit).read_text()) - int((group / used).read_text())
        except (OSError, ValueError):  # none, or "max"
            continue
        left = min(left, free + _cache(group))
    return left


def _memory_groups() -> Iterator[tuple[Path, str, str]]:
    """The control groups of this process, from the innermost on, and the files of their limit and of what is used."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.is_file() else []
    for _, kinds, name in (line.split(":", 2) for line in lines if line.count(":") > 1):
        if kinds == "":
            tree, files = _GROUPS, ("memory.max", "memory.current")
        elif "memory" in kinds.split(","):
            tree, files = _GROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = tree / name.lstrip("/")
        # A container may be told the name that it has outside: then only the root of the tree is there.
        for group in (own, *own.parents):
            yield group, *files
            if group == tree:
                break


def _cache(group: Path) -> int:
    """Bytes of files that are kept in memory as long as nobody wants it; they count as used."""
    try:
        stated = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(stated.get(f"total_{name}", stated.get(name, 0))) for name in ("inactive_file", "active_file"))


def memory_of_workers(client: Client) -> int | None:
    """Least bytes for each thread of the workers of a cluster; None if they state none."""
    stated = [
        int(worker["memory_limit"]) // max(1, int(worker["nthreads"]))
        for worker in client.scheduler_info(n_workers=-1)["workers"].values()
        if worker.get("memory_limit")
    ]
    return min(stated, default=None)


def compute_here(count: int) -> None:
    """Make this process fit to compute: with so many threads of torch, and freed memory kept."""
    import torch

    torch.set_num_threads(count)
    keep_freed()


@contextmanager
def connect(workers: int = 1, scheduler: str | None = None, kind: str = "local") -> Iterator[Client | None]:
    """A Dask client, or None for this process.

    Parameters
    ----------
    workers
        Processes of a local cluster, each with its share of the cores, where 1 runs everything in this process; the
        most workers of a cluster that grows.
    scheduler
        Address of a running scheduler, for example ``tcp://10.0.0.5:8786``.
    kind
        Of a cluster to start, see :func:`stfgan_xr.deployments.start`.

    Raises
    ------
    InputError
        If the scheduler does not answer, or what the kind of cluster needs is missing.
    ResourceError
        If the scheduler is lost.
    """
    if scheduler is None and kind == "local" and workers <= 1:
        yield None
        return
    from distributed import Client
    from distributed.comm.core import CommClosedError

    # distributed tells of every connection on import; its warnings are enough.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    # Workers that die and a scheduler that is lost are told of by run, without tracebacks.
    for name in ("client", "comm", "nanny", "scheduler", "utils"):
        logging.getLogger(f"distributed.{name}").setLevel(logging.CRITICAL)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=15)
        except (OSError, ValueError, TypeError) as error:  # the last of encryption that is not set up
            raise InputError(f"--scheduler {scheduler}: no Dask scheduler answers there ({_say(error)})") from None
    else:
        deployments.configure(max(1, cores() // max(workers, 1)))
        client = _client_of(deployments.start(kind, workers), kind)
    with client:
        try:
            with deployments.replaced(client.cluster if kind in deployments.HERE else None):
                yield client
        except CommClosedError:  # whatever was asked of it
            raise ResourceError(LOST) from None
        except Exception:
            raise
        except BaseException:  # asked to end: what is being done is abandoned
            deployments.abandon(client.cluster)
            raise
        finally:
            _close(client.cluster)


def _client_of(cluster: Any, kind: str) -> Client:
    try:
        client: Client = cluster.get_client()
    except BaseException as error:
        _close(cluster)
        if not isinstance(error, OSError):
            raise
        raise ResourceError(
            f"--cluster {kind}: the scheduler that was started does not answer ({_say(error)})"
        ) from None
    return client


def _close(cluster: Any) -> None:
    """Close a cluster of this run's own; None: there is none. What ended the run is not hidden by a failure of that."""
    if cluster is None:
        return
    try:
        cluster.close()
    except Exception as error:  # of whatever started it
        log.warning("the cluster may still be there: %s", _say(error))


@dataclass(frozen=True)
class Failed:
    """A task that was given up: its place among the tasks, and what went wrong at the last attempt."""

    number: int
    why: str


def run(tasks: Iterable[Delayed], client: Client | None, minutes: float | None = None) -> Iterator[Any | Failed]:
    """Results of tasks as they finish; only a few are under way at a time.

    A known error (:class:`StfganError`) of a task is raised as it is: it would be that of the next task too. Whatever
    else happens to a task, that its worker dies or that it takes too long among it, is tried again, the last of
    :data:`ATTEMPTS` alone, and then given up.

    Parameters
    ----------
    tasks
        They run in this process one after the other, or on the workers.
    client
        From :func:`connect`.
    minutes
        How long a task may take. In this process that is only watched in the main thread.

    Raises
    ------
    ResourceError
        If the scheduler is lost.
    """
    if client is None:
        yield from _run_here(tasks, minutes)
    else:
        yield from _run_there(tasks, client, minutes)


def _say(error: BaseException) -> str:
    text = " ".join(redact(str(error)).split())
    return f"{type(error).__name__}: {text[:300]}"


def _run_here(tasks: Iterable[Delayed], minutes: float | None) -> Iterator[Any | Failed]:
    keep_freed()
    failed = done = 0
    for number, task in enumerate(tasks):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with _alarm(minutes):
                    result = task.compute(scheduler="synchronous")
            except StfganError:
                raise
            except MemoryError:
                raise _out_of_memory() from None
            except Exception as error:
                log.warning("task %d failed, attempt %d: %s", number, attempt, _say(error))
                result = Failed(number, _say(error))
                continue
            break
        failed, done = failed + isinstance(result, Failed), done + (not isinstance(result, Failed))
        yield result
        if _is_hopeless(failed, done):
            return


def _is_hopeless(failed: int, done: int) -> bool:
    return not done and failed >= MOST_FAILED


def _out_of_memory() -> ResourceError:
    return ResourceError("out of memory; finished blocks are kept: choose a smaller --tile or fewer --workers")


class _TooLong(Exception):
    """A task took longer than it may."""


@contextmanager
def _alarm(minutes: float | None) -> Iterator[None]:
    """Within it, :class:`_TooLong` is raised after some minutes."""
    if minutes is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: Any) -> None:
        raise _TooLong(f"took more than {minutes:g} minutes")

    begun, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    others, _ = signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        # An alarm that somebody else had set still rings.
        signal.setitimer(signal.ITIMER_REAL, others and max(others - (time.monotonic() - begun), 1e-3))
        signal.signal(signal.SIGALRM, before)


def _run_there(tasks: Iterable[Delayed], client: Client, minutes: float | None) -> Iterator[Any | Failed]:
    with deployments.told(client, _thrift(client.id), for_good=client.cluster is not None), _watched(client, minutes):
        yield from _tried_again(tasks, client)


def _thrift(owner: str) -> Any:
    """A plugin of workers that has them keep memory that they free; see :mod:`stfgan_xr.allocation`."""
    from distributed import WorkerPlugin

    class Thrift(WorkerPlugin):
        name = f"stfgan_xr-allocation-{owner}"

        def setup(self, worker: Any) -> None:
            keep_freed()

        def teardown(self, worker: Any) -> None:
            give_back_freed()

    return Thrift()


def _tried_again(tasks: Iterable[Delayed], client: Client) -> Iterator[Any | Failed]:
    # A worker that dies takes others' tasks with it: those that failed wait, and end alone.
    suspects, done = list[tuple[int, Delayed]](), 0
    for number, task, result in _as_they_end(enumerate(tasks), client):
        if isinstance(result, Failed):
            suspects.append((number, task))
        else:
            done += 1
            yield result
        if _is_hopeless(len(suspects), done):
            break
    for attempt in range(2, ATTEMPTS + 1):
        alone = attempt == ATTEMPTS
        left, suspects = suspects, []
        for number, task, result in _as_they_end(iter(left), client, 1 if alone else None):
            if isinstance(result, Failed) and not alone:
                suspects.append((number, task))
            else:
                yield result


def _as_they_end(
    tasks: Iterator[tuple[int, Delayed]], client: Client, ahead: int | None = None
) -> Iterator[tuple[int, Delayed, Any]]:
    from distributed import as_completed

    places: dict[Any, tuple[int, Delayed]] = {}
    known = set[str]()

    def wanted() -> int:
        """How many tasks to submit: workers come and go, and a cluster that grows does so by what waits for them."""
        with deployments.asking():
            threads = dict(client.nthreads())
            if joined := threads.keys() - known:
                deployments.check_versions(client, joined)
                known.update(joined)
        return (ahead or AHEAD * max(1, sum(threads.values()))) - len(places)

    def submit() -> list[Any]:
        futures = []
        for number, task in islice(tasks, max(0, wanted())):
            future = client.compute(task)
            places[future] = number, task
            futures.append(future)
        return futures

    queue = as_completed(submit())
    for future in queue:
        number, task = places.pop(future)
        result = _outcome(future, number, client)
        future.release()
        for other in submit():
            queue.add(other)
        yield number, task, result


def _outcome(future: Any, number: int, client: Client) -> Any | Failed:
    try:
        return future.result()
    except StfganError:
        raise
    except MemoryError:
        raise _out_of_memory() from None
    except (Exception, CancelledError) as error:
        if client.status != "running" or isinstance(error, CancelledError):
            raise ResourceError(LOST) from None
        log.warning("task %d failed: %s", number, _say(error))
        return Failed(number, _say(error))


@contextmanager
def _watched(client: Client, minutes: float | None) -> Iterator[None]:
    """Within it, workers whose task takes too long end: nothing else stops a task that hangs.

    A scheduler that was there already may serve others too: of its tasks only :data:`WATCHED` are.
    """
    if minutes is None:
        yield
        return
    own = client.cluster is not None
    plugin = _watchdog(60 * minutes, ("",) if own else WATCHED, client.id)
    # Workers of this run's own end with it.
    with deployments.told(client, plugin, for_good=own):
        yield


def _watchdog(seconds: float, which: tuple[str, ...], owner: str = "") -> Any:
    """A plugin of workers that ends them if a task with one of some words in its name takes too long."""
    from distributed import WorkerPlugin

    class Watchdog(WorkerPlugin):
        name = f"stfgan_xr-watchdog-{owner}"

        def __init__(self) -> None:
            self.timers: dict[Any, threading.Timer] = {}

        def teardown(self, worker: Any) -> None:
            # It is not told any more that their tasks ended.
            for timer in self.timers.values():
                timer.cancel()

        def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
            if finish == "executing" and any(word in str(key) for word in which):
                timer = threading.Timer(seconds, os._exit, (TOO_LONG,))
                timer.daemon = True
                self.timers[key] = timer
                timer.start()
            elif key in self.timers:
                self.timers.pop(key).cancel()

    return Watchdog()
