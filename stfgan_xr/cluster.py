"""Where tasks run: in this process, on a local cluster, or on a Dask scheduler that is already there."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from dask.delayed import Delayed

from stfgan_xr.errors import InputError, ResourceError, StfganError
from stfgan_xr.remote import redact

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
ATTEMPTS = 3
"""How often a task is tried that fails for no known reason."""
MOST_FAILED = 20
"""After so many tasks that failed, and none that did not, the rest is not tried."""
LOST = "the Dask scheduler is lost; finished blocks are kept: run the same command again"
TELLING = 10
"""How often workers are told of something until none of them dies meanwhile."""
TOO_LONG = 75
"""With which a worker ends whose task took too long."""
REPLACED = 10.0
"""Seconds after which it is looked whether workers of this machine are gone for good."""
AHEAD = 2
"""Tasks submitted for each worker thread: enough to keep it busy, few enough to keep the graph small."""


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_left() -> int:
    """Bytes that this machine can still give: what is free, within the limit of the control group if there is one."""
    left = int(psutil.virtual_memory().available)
    for limit, used in _CGROUPS:
        try:
            left = min(left, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return left


def memory_of_workers(client: Client) -> int | None:
    """Least bytes for each thread of the workers of a cluster; None if they state none."""
    stated = [
        int(worker["memory_limit"]) // max(1, int(worker["nthreads"]))
        for worker in client.scheduler_info(n_workers=-1)["workers"].values()
        if worker.get("memory_limit")
    ]
    return min(stated, default=None)


def limit_threads(count: int) -> None:
    """Threads that torch uses in this process."""
    import torch

    torch.set_num_threads(count)


@contextmanager
def connect(workers: int = 1, scheduler: str | None = None, kind: str = "local") -> Iterator[Client | None]:
    """A Dask client, or None for this process.

    Parameters
    ----------
    workers
        Processes of a local cluster, each with its share of the cores; 1 runs everything in this process.
    scheduler
        Address of a running scheduler, for example ``tcp://10.0.0.5:8786``.
    kind
        ``local`` or ``cuda`` (one worker per GPU through dask-cuda).

    Raises
    ------
    InputError
        If the scheduler does not answer, or dask-cuda or a driver is missing.
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
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({type(error).__name__})"
            ) from None
    else:
        _configure(max(1, cores() // max(workers, 1)))
        client = Client(_cuda_cluster() if kind == "cuda" else _local_cluster(workers))
    log.info("dashboard: %s", client.dashboard_link)
    with client:
        try:
            with _replaced(client.cluster):
                yield client
        except CommClosedError:  # whatever was asked of it
            raise ResourceError(LOST) from None
        except Exception:
            raise
        except BaseException:  # asked to end: what is being done is abandoned
            _abandon(client.cluster)
            raise
        finally:
            if client.cluster is not None:
                client.cluster.close()


def _abandon(cluster: Any) -> None:
    """End the workers of a cluster of this machine at once; closing it would wait for their blocks first."""
    for nanny in getattr(cluster, "workers", {}).values():
        nanny.auto_restart = False
        if getattr(nanny, "pid", None):
            os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def _replaced(cluster: Any) -> Iterator[None]:
    """Within it, workers of a cluster of this machine that are gone for good are replaced.

    Dask starts a worker that dies again, but gives up one that dies while it starts, or starts slowly; a run without
    any would wait for ever.
    """
    count, ended = len(getattr(cluster, "worker_spec", {})), threading.Event()

    def look() -> None:
        while not ended.wait(REPLACED):
            cluster.scale(count)

    watch = threading.Thread(target=look, name="workers", daemon=True)
    if count:
        watch.start()
    try:
        yield
    finally:
        ended.set()
        if count:
            watch.join()


def _configure(threads: int) -> None:
    """What holds for workers of this machine, those that are started again too."""
    import dask

    # Not by torch itself: it takes long to load, and not every method needs it.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names}
    # A task whose worker dies comes back at once: who is to blame is found out by :func:`run`.
    dask.config.set({"distributed.scheduler.allowed-failures": 0} | environment)


def _local_cluster(workers: int) -> Any:
    from distributed import LocalCluster

    return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")


def _cuda_cluster() -> Any:
    try:
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster()
    except ImportError:
        raise InputError("--cluster cuda needs dask-cuda: pip install 'stfgan_xr[cuda]'") from None
    except Exception as error:  # pynvml raises its own types where there is no driver
        raise InputError(
            f"--cluster cuda: no usable NVIDIA driver ({type(error).__name__}); use --cluster local"
        ) from None


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
    with _watched(client, minutes):
        yield from _tried_again(tasks, client)


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

    ahead = ahead or AHEAD * max(1, sum(client.nthreads().values()))
    places = {}

    def submit(count: int) -> list[Any]:
        futures = []
        for number, task in islice(tasks, count):
            future = client.compute(task)
            places[future] = number, task
            futures.append(future)
        return futures

    queue = as_completed(submit(ahead))
    for future in queue:
        number, task = places.pop(future)
        result = _outcome(future, number, client)
        future.release()
        for other in submit(1):
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

    A scheduler that was there already may serve others too: of its tasks only those that write blocks are watched.
    """
    if minutes is None:
        yield
        return
    own = client.cluster is not None
    plugin = _watchdog(60 * minutes, "" if own else "write_block")
    _tell(client, client.register_plugin, plugin)
    try:
        yield
    finally:
        if not own:
            with suppress(ResourceError, ValueError):  # not over what ended the run; or done already
                _tell(client, client.unregister_worker_plugin, plugin.name)


def _tell(client: Client, tell: Callable[[Any], Any], what: Any) -> None:
    """Tell all workers something; the scheduler hangs up if one of them dies meanwhile, and is asked again.

    Raises
    ------
    ResourceError
        If the scheduler is lost.
    """
    for _ in range(TELLING):
        if client.status != "running":
            break
        try:
            tell(what)
            return
        except OSError:  # CommClosedError is one
            time.sleep(1)
    raise ResourceError(LOST)


def _watchdog(seconds: float, which: str) -> Any:
    """A plugin of workers that ends them if a task with ``which`` in its name takes too long."""
    from distributed import WorkerPlugin

    class Watchdog(WorkerPlugin):
        name = "stfgan_xr-watchdog"

        def __init__(self) -> None:
            self.timers: dict[Any, threading.Timer] = {}

        def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
            if finish == "executing" and which in str(key):
                timer = threading.Timer(seconds, os._exit, (TOO_LONG,))
                timer.daemon = True
                self.timers[key] = timer
                timer.start()
            elif key in self.timers:
                self.timers.pop(key).cancel()

    return Watchdog()
