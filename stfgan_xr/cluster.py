"""Where tasks run: in this process, on a local cluster, or on a Dask scheduler that is already there."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from dask.delayed import Delayed

from stfgan_xr.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
AHEAD = 2
"""Tasks submitted for each worker thread: enough to keep it busy, few enough to keep the graph small."""


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    """
    if scheduler is None and kind == "local" and workers <= 1:
        yield None
        return
    from distributed import Client

    # distributed tells of every connection on import; its warnings are enough.
    logging.getLogger("distributed").setLevel(logging.WARNING)
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=15)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--scheduler {scheduler}: no Dask scheduler answers there ({type(error).__name__})"
            ) from None
    else:
        client = Client(_cuda_cluster() if kind == "cuda" else _local_cluster(workers))
        client.run(limit_threads, max(1, cores() // max(workers, 1)))
    log.info("dashboard: %s", client.dashboard_link)
    with client:
        try:
            yield client
        finally:
            if client.cluster is not None:
                client.cluster.close()


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


def run(tasks: Iterable[Delayed], client: Client | None) -> Iterator[Any]:
    """Results of tasks as they finish; only a few are under way at a time.

    In this process they run one after the other. The first error is raised as it is.
    """
    if client is None:
        for task in tasks:
            yield task.compute(scheduler="synchronous")
        return
    from distributed import as_completed

    waiting = iter(tasks)
    ahead = AHEAD * max(1, sum(client.nthreads().values()))
    queue = as_completed([client.compute(task) for task in islice(waiting, ahead)])
    for future in queue:
        result = future.result()
        future.release()
        for task in islice(waiting, 1):
            queue.add(client.compute(task))
        yield result
