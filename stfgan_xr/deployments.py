"""What tasks are spread over: clusters that Dask starts on its many kinds of machines, and workers made fit for a run.

Workers need not share a disk with the client: the model and what is known of catalogs travel to them. They read imagery
and write blocks themselves, so they must reach the run folder and the images by the same names.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stfgan_xr import checkpoint
from stfgan_xr.errors import InputError, ResourceError, StfganError
from stfgan_xr.files import Folder
from stfgan_xr.remote import redact

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)
QUEUES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
"""Batch systems by the name of their class in dask-jobqueue."""
HERE = ("local", "cuda")
"""Kinds whose workers are processes of this machine."""
KINDS = (*HERE, *QUEUES, "gateway", "kubernetes")
"""Kinds of clusters that :func:`start` knows."""
PACKAGES = ("stfgan_xr", "numpy", "xarray", "zarr", "dask", "distributed", "torch", "rasterio", "stackstac")
"""Whose versions must be the same everywhere."""
PATIENCE = 60.0
"""Seconds in which a scheduler that is there already must have a worker; queues may take longer."""
REMINDER = 60.0
"""Seconds after which it is said again that no worker has come."""
BLOCKS_A_GPU = 2
"""Threads of a worker with a GPU: while one block is in the network another one is read or written."""
REPLACED = 10.0
"""Seconds after which it is looked whether workers of this machine are gone for good."""
TELLING = 10
"""How often workers are told of something until none of them dies meanwhile."""
LOST = "the Dask scheduler is lost; finished blocks are kept: run the same command again"
_ENDED = ("closed", "failed")


def _library(name: str, kind: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        package = name.split(".")[0].replace("_", "-")
        raise InputError(f"--cluster {kind} needs {package}: pip install 'stfgan_xr[{extra}]'") from None


def configure(threads: int) -> None:
    """What holds for workers of this machine, those that are started again too."""
    import dask

    # Not by torch itself: it takes long to load, and not every method needs it.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {f"distributed.nanny.pre-spawn-environ.{name}": threads for name in names}
    # A task whose worker dies comes back at once: who is to blame is found out by run.
    dask.config.set({"distributed.scheduler.allowed-failures": 0} | environment)


def start(kind: str, workers: int) -> Any:
    """A Dask cluster that is this run's own.

    Parameters
    ----------
    kind
        One of :data:`KINDS`. ``local`` is processes of this machine, ``cuda`` one worker a GPU of it; the others take
        their options from Dask's own configuration (``~/.config/dask/*.yaml``: ``jobqueue.slurm``, ``gateway``,
        ``kubernetes``) and grow and shrink with the work there is.
    workers
        Processes of a local cluster; of others the most workers there may be.

    Raises
    ------
    InputError
        If a library, a driver, a command or an option is missing, which is named.
    """
    if kind == "local":
        from distributed import LocalCluster

        return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0")
    if kind == "cuda":
        return _cuda()
    make = _queue if kind in QUEUES else _gateway if kind == "gateway" else _kubernetes
    cluster = make(kind)
    cluster.adapt(minimum=1, maximum=workers)
    return cluster


def _cuda() -> Any:
    """One worker a GPU."""
    module = _library("dask_cuda", "cuda", "cuda")
    try:
        return module.LocalCUDACluster(threads_per_worker=BLOCKS_A_GPU)
    except Exception as error:  # pynvml raises its own types where there is no driver
        raise InputError(
            f"--cluster cuda: no usable NVIDIA driver ({type(error).__name__}); use --cluster local"
        ) from None


def _queue(kind: str) -> Any:
    made = getattr(_library("dask_jobqueue", kind, "cluster"), QUEUES[kind])
    submit = made.job_cls.submit_command.split()[0]
    if shutil.which(submit) is None:
        raise InputError(f"--cluster {kind}: there is no {submit} here; start it where jobs are submitted from")
    options = (
        f"options are those of jobqueue.{kind} in Dask's own configuration, for example ~/.config/dask/jobqueue.yaml"
    )
    try:
        cluster = made()
    except (ValueError, TypeError, OSError) as error:
        raise InputError(f"--cluster {kind}: {_first_line(error)}; {options}") from None
    try:
        # What scale(1) does, but here and now: that a job is refused would only be told of, and waited for.
        cluster.worker_spec.update(cluster.new_worker_spec())
        cluster.sync(cluster._correct_state)
    except RuntimeError as error:
        with suppress(Exception):  # it dislikes to be closed before it has started
            cluster.close()
        raise InputError(f"--cluster {kind}: {str(error).strip().splitlines()[-1]}; {options}") from None
    return cluster


def _gateway(kind: str) -> Any:
    module = _library("dask_gateway", kind, "cluster")
    try:
        return module.GatewayCluster()
    except Exception as error:  # of its own, of aiohttp, or of the gateway
        raise InputError(
            f"--cluster gateway: no cluster from dask-gateway ({_first_line(error)}); its address and login are "
            "gateway.address and gateway.auth in Dask's own configuration, for example ~/.config/dask/gateway.yaml"
        ) from None


def _kubernetes(kind: str) -> Any:
    module = _library("dask_kubernetes.operator", kind, "cluster")
    try:
        return module.KubeCluster()
    except Exception as error:  # of httpx, of kr8s, or of the cluster
        raise InputError(
            f"--cluster kubernetes: no cluster from the Dask operator ({_first_line(error)}); it must be installed, "
            "kubectl must reach it, and name and image are kubernetes.name and kubernetes.image in Dask's own "
            "configuration, for example ~/.config/dask/kubernetes.yaml"
        ) from None


def _first_line(error: BaseException) -> str:
    text = redact(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"


def abandon(cluster: Any) -> None:
    """End the workers of a cluster of this machine at once; closing it would wait for their blocks first."""
    for nanny in getattr(cluster, "workers", {}).values():
        nanny.auto_restart = False
        if getattr(nanny, "pid", None):
            os.kill(nanny.pid, signal.SIGKILL)


@contextmanager
def replaced(cluster: Any) -> Iterator[None]:
    """Within it, workers of a cluster of this machine that are gone for good are replaced.

    Dask starts a worker that dies again, but gives up one that dies while it starts, or starts slowly; a run without
    any would wait for ever. Clusters that grow and shrink see to that themselves.

    Parameters
    ----------
    cluster
        Of one of the kinds in :data:`HERE`; None: there is none.
    """
    if cluster is None:
        yield
        return
    count, ended = len(cluster.worker_spec), threading.Event()

    def look() -> None:
        while not ended.wait(REPLACED):
            cluster.scale(count)

    watch = threading.Thread(target=look, name="workers", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        watch.join()


# ---------------------------------------------------------------- workers made fit


@contextmanager
def asking() -> Iterator[None]:
    """Within it, that a scheduler does not answer is a :class:`ResourceError`; failures of workers are answers."""
    try:
        yield
    except OSError:  # CommClosedError is one
        raise ResourceError(LOST) from None


def tell(client: Client, say: Callable[[Any], Any], what: Any) -> None:
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
            say(what)
            return
        except OSError:
            time.sleep(1)
    raise ResourceError(LOST)


@contextmanager
def told(client: Client, plugin: Any, for_good: bool = False) -> Iterator[None]:
    """Within it, workers have a plugin, those that come later too.

    Parameters
    ----------
    client
        Of the workers.
    plugin
        What they are told.
    for_good
        They keep it afterwards.

    Raises
    ------
    ResourceError
        If the scheduler is lost.
    """
    tell(client, client.register_plugin, plugin)
    try:
        yield
    finally:
        if not for_good:
            with suppress(ResourceError, ValueError):  # not over what ended the run; or done already
                tell(client, client.unregister_worker_plugin, plugin.name)


def _asks_versions(names: Collection[str]) -> Callable[[], dict[str, str]]:
    """A function that travels by value: workers may not have this package."""

    def found() -> dict[str, str]:
        import platform
        from importlib.metadata import PackageNotFoundError, version

        installed = {"python": ".".join(platform.python_version_tuple()[:2])}
        for name in names:
            try:
                installed[name] = version(name)
            except PackageNotFoundError:
                installed[name] = "none"
        return installed

    return found


def versions() -> dict[str, str]:
    """Of Python, without the last number, and of :data:`PACKAGES`, in this process; ``none`` where one is missing.

    >>> sorted(set(PACKAGES) - set(versions()))
    []
    """
    return _asks_versions(PACKAGES)()


def compare_versions(theirs: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse workers with other versions than this process.

    Parameters
    ----------
    theirs
        Versions by the address of the worker.

    Raises
    ------
    InputError
        With every difference of the first such worker.

    >>> compare_versions({"tcp://10.0.0.5:40000": versions()})
    >>> compare_versions({"tcp://10.0.0.5:40000": versions() | {"numpy": "1.26.4", "torch": "none"}})
    Traceback (most recent call last):
    stfgan_xr.errors.InputError: worker tcp://10.0.0.5:40000 has numpy 1.26.4 (here ...), torch none (here ...); ...
    """
    ours = versions()
    for address, found in theirs.items():
        wrong = [
            f"{name} {found.get(name, 'none')} (here {own})" for name, own in ours.items() if found.get(name) != own
        ]
        if wrong:
            raise InputError(
                f"worker {address} has {', '.join(wrong)}; install the same set everywhere (constraints.txt), "
                "as other versions may give other pixels"
            )


def check_versions(client: Client, workers: Collection[str] | None = None) -> None:
    """:func:`compare_versions` of some workers, by default of all; those that are lost meanwhile do not count."""
    found = client.run(_asks_versions(PACKAGES), workers=None if workers is None else list(workers), on_error="return")
    compare_versions({address: theirs for address, theirs in found.items() if isinstance(theirs, dict)})


def _looks(folder: Folder, key: str, held: bytes) -> str | None:
    """What is wrong with a run folder as this worker sees it; None if nothing."""
    try:
        folder.check()
        content = folder.read(key)
    except (StfganError, OSError) as error:
        return str(error)
    return None if content is not None and held in content else "it is not what the command sees under that name"


def check_reach(client: Client, folder: Folder, key: str, held: bytes) -> None:
    """Refuse workers that do not see the run folder.

    Parameters
    ----------
    client
        Of the workers.
    folder
        The run folder.
    key, held
        A file of it, and what no other folder's has in it: the token of its lease, say.

    Raises
    ------
    InputError
        With the first of them, and what to do.
    """
    found = client.run(_looks, folder, key, held, on_error="return")
    for address, problem in found.items():
        if problem is not None and not isinstance(problem, OSError):
            raise InputError(
                f"worker {address} does not see the run folder {folder} ({problem}); workers read and write it "
                "themselves: choose --out on a disk that all of them share, or s3://bucket/run"
            )


def await_workers(client: Client, patience: float | None = None) -> None:
    """Wait until there is a worker, and say so now and then.

    Raises
    ------
    InputError
        If none has come after ``patience`` seconds.
    ResourceError
        If the cluster has ended.
    """
    begun = said = time.monotonic()
    while not client.nthreads():
        now = time.monotonic()
        if patience is not None and now - begun > patience:
            address = client.scheduler_info()["address"]
            raise InputError(f"the scheduler has no worker after {patience:.0f} s; start some: dask worker {address}")
        status = getattr(client.cluster, "status", None)  # a text of some clusters, a member of an Enum of others
        if client.status != "running" or getattr(status, "name", status) in _ENDED:
            raise ResourceError("the cluster ended before a worker came; look at the logs of its jobs")
        if now - said > REMINDER:
            log.warning("no worker yet after %.0f s; the jobs may be queued", now - begun)
            said = now
        time.sleep(0.2)


def make_fit(client: Client, folder: Folder, key: str, held: bytes) -> None:
    """Wait for workers, and refuse those that cannot do the work of a run: see :func:`check_versions` and
    :func:`check_reach`."""
    with asking():
        await_workers(client, PATIENCE if client.cluster is None else None)
        check_versions(client)
        check_reach(client, folder, key, held)


@contextmanager
def model_sent(client: Client | None, predictor: Any) -> Iterator[None]:
    """Within it, workers hold the weights of a predictor in memory and have loaded them, those that come later too.

    Parameters
    ----------
    client
        Of the workers; None: there are none.
    predictor
        A method; without weights nothing is sent.
    """
    path: Path | None = getattr(predictor, "path", None)
    if client is None or path is None:
        yield
        return
    with told(client, _weights(path, checkpoint.contents(path), predictor, client.id)):
        yield


def _weights(path: Path, content: tuple[bytes, bytes], predictor: Any, owner: str) -> Any:
    """A plugin of workers that holds a checkpoint under the name it has here, and loads it."""
    import asyncio

    from distributed import WorkerPlugin

    class Weights(WorkerPlugin):
        # Others on the same scheduler may use the same weights, and take back their own.
        name = f"stfgan_xr-weights-{predictor.sha256[:16]}-{owner}"

        async def setup(self, worker: Any) -> None:
            checkpoint.hold(path, *content)
            # Not in the thread that answers the scheduler: torch takes seconds to load.
            await asyncio.to_thread(predictor.warm)

        def teardown(self, worker: Any) -> None:
            checkpoint.drop(path)

    return Weights()
