"""Who does the work: processes of this machine, or a Ray cluster. Either gives the results in the order of the input.

An engine takes a picklable task, an iterable of inputs and the number of cores, and yields the task's results. It reads
only a few inputs ahead, so that a corpus of any size can stream through it.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from audioldm2_pl.errors import UserError

AHEAD = 3  # inputs in flight for each core: enough that a slow one does not leave the others idle

Task = Callable[[Any], Any]
Engine = Callable[[Task, Iterable[Any], int], Generator[Any, None, None]]


def local(task: Task, inputs: Iterable[Any], num_cores: int) -> Generator[Any, None, None]:
    """In processes of this machine; with one core in this very process."""
    if num_cores == 1:
        yield from map(task, inputs)
        return
    # A fork of this process could hang on the locks of its threads (torch, tqdm); a server that has imported
    # everything forks the workers instead.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.shards"])
    pool = ProcessPoolExecutor(num_cores, context, initializer=_follow_parent)
    try:
        yield from _in_order(inputs, AHEAD * num_cores, lambda item: pool.submit(task, item), lambda job: job.result())
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps out of memory; the same command with fewer --workers resumes from here"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def on_ray(task: Task, inputs: Iterable[Any], num_cores: int) -> Generator[Any, None, None]:
    """On a Ray cluster, whose nodes see this code and the recordings under the same paths."""
    ray = connect()
    lost = ray.exceptions
    remote = ray.remote(_call)  # type: ignore[attr-defined]
    handed = ray.put(task)
    try:
        yield from _in_order(inputs, AHEAD * num_cores, lambda item: remote.remote(handed, item), ray.get)
    except (lost.WorkerCrashedError, lost.OutOfMemoryError, lost.ObjectLostError) as error:
        raise UserError(f"Ray lost a worker ({type(error).__name__}); the same command resumes from here") from None


def connect() -> Any:
    """Ray, connected to the cluster of RAY_ADDRESS or to the one that runs on this machine."""
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise UserError("--engine ray needs Ray; install audioldm2-pl[ray]") from None
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"no Ray cluster ({reason}); start one with ray start --head, or set RAY_ADDRESS") from None
    return ray


ENGINES: dict[str, Engine] = {"local": local, "ray": on_ray}


def count_cores(engine: str) -> int:
    """The cores that are there for an engine."""
    if engine == "ray":
        return max(1, int(connect().cluster_resources().get("CPU", 1)))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(
    inputs: Iterable[Any], num_ahead: int, start: Callable[[Any], Any], result: Callable[[Any], Any]
) -> Generator[Any, None, None]:
    pending: deque[Any] = deque()
    for item in inputs:
        pending.append(start(item))
        if len(pending) > num_ahead:
            yield result(pending.popleft())
    while pending:
        yield result(pending.popleft())


def _call(task: Task, item: Any) -> Any:
    return task(item)


def _follow_parent() -> None:
    """In a worker: Ctrl-C is the parent's to handle, and a worker whose parent was killed ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
