"""Runs and trials on Dask's workers: this command's own, or those of a cluster (`dask scheduler`, `dask worker`).

    over = run_all(function, payloads, folder, workers=2)  # each once; what is kept in the folder is not run again

The command alone decides and keeps, one in a folder at a time. A worker that dies is Dask's business: the run goes on
from its checkpoint on another one; after a command that died the same command does. Machines share the folders.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing.resource_tracker
import pickle
import re
import signal
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask
import optuna
from distributed import Client, LocalCluster, WorkerPlugin, get_worker, wait
from distributed.comm import CommClosedError
from distributed.utils import get_mp_context
from filelock import FileLock, Timeout
from optuna.storages.journal import JournalFileBackend
from tqdm.auto import tqdm

from support import shell
from support.run import alone, read_json, write_json

ROOT = str(Path(__file__).resolve().parent.parent)
ATTEMPTS = 3  # so many in a row may fail by no fault of their own before the command gives up
FORKSERVER = "forkserver" in multiprocessing.get_all_start_methods()
SETTINGS = {
    "distributed.worker.multiprocessing-method": "forkserver" if FORKSERVER else "spawn",
    "distributed.worker.profile.enabled": False,
    "distributed.deploy.lost-worker-timeout": "1h",  # else a worker that is slow to come back is given up for good
    "distributed.scheduler.allowed-failures": 3,  # workers that may die of one run before Dask gives it back
    # Without Dask's MALLOC_TRIM_THRESHOLD_, with which every batch is new memory, and a third of the time goes there
    "distributed.nanny.pre-spawn-environ": dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), 1),
}
# What a worker evaluates. The scheduler reads it as well, so there is not a word of ours in it to be imported there.
TASK = "[path := __import__('sys').path, root in path or path.insert(0, root), __import__('pickle').loads(work)][-1]()"
now = partial(datetime.now, UTC)
ONE_AT_A_TIME = threading.Lock()  # in a process, however many threads: PyTorch's random stream is the process's


class StudyError(Exception):
    """It cannot go on; one line for the screen."""


class Failed(Exception):
    """Raised by a function: its run's own fault, such as divergence, and final."""


class Finished(NamedTuple):
    """A planned run that is over."""

    result: Any  # None if its function raised Failed
    reason: str  # of Failed, or empty
    begun: str  # date and time, ISO 8601 in UTC; of the attempt that counts
    ended: str


class Stop(WorkerPlugin):
    """When a worker is closed, what runs there saves and stops; a SIGTERM closes it, and Dask runs it elsewhere."""

    def setup(self, worker):
        if worker.nanny and threading.current_thread() is threading.main_thread():  # else `dask worker` handles it
            leave = partial(worker.loop.add_callback_from_signal, worker.close_gracefully, restart=True)
            signal.signal(signal.SIGTERM, lambda *_: leave())

    def teardown(self, worker):
        shell.STOP.set()


def attempt(function: Callable, what: Any, folder: Path) -> dict:
    """What came of `function(what, folder)`; its state is STOPPED if it saved and stopped."""
    be_quiet()
    worker, found = get_worker(), {"state": "STOPPED", "result": None, "reason": "", "begun": f"{now():%FT%TZ}"}
    folder.mkdir(exist_ok=True)
    busy = FileLock(folder / ".busy")  # a worker that the scheduler has lost may still be at work there
    with contextlib.suppress(KeyboardInterrupt, Timeout), ONE_AT_A_TIME:
        if "stop" not in worker.plugins:
            worker.loop.add_callback(worker.plugin_add, Stop(), "stop")
        with busy.acquire(poll_interval=0.2, cancel_check=shell.STOP.is_set):
            try:
                found |= {"result": function(what, folder), "state": "COMPLETE"}
            except optuna.TrialPruned:
                found["state"] = "PRUNED"
            except Failed as failed:
                found |= {"reason": shell.one_line(failed), "state": "FAIL"}
    return found | {"ended": f"{now():%FT%TZ}"}


def be_quiet() -> None:
    logging.disable()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")  # that a step was reported before, that something is experimental
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed process leaves behind


def run_trial(number: int, folder: Path, objective: Callable, open_study: Callable[[], optuna.Study]) -> float:
    study = open_study()
    return float(objective(optuna.Trial(study, study.trials[number]._trial_id), folder))


class Journal(JournalFileBackend):
    """Optuna's journal, in which half a line at the end, left by a kill or a full disk, is never built on."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._lock, Path(self._file_path).open("r+b") as file:
            if file.seek(0, 2) and (file.seek(-1, 2), file.read())[1] != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            super().append_logs(logs)


@contextlib.contextmanager
def connected(workers: int, scheduler: str, preload: Sequence[str]) -> Iterator[tuple[Client, threading.Event]]:
    """A client of the cluster at `scheduler` or of one's own, and what Ctrl-C and SIGTERM set, however often."""
    be_quiet()
    stopped = threading.Event()  # and nothing is raised: Dask must not be cut off in the middle
    with dask.config.set(SETTINGS), contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, lambda *_: stopped.set()))
        try:
            place = scheduler or stack.enter_context(own_cluster(workers, preload))
            client = stack.enter_context(Client(place, timeout=10))
        except (OSError, ValueError, TypeError) as error:
            raise StudyError(f"{scheduler or 'workers'}: out of reach ({shell.one_line(error)[:150]})") from None
        tqdm.write(f"the workers' own page: {client.dashboard_link}", file=sys.stderr)
        yield client, stopped


def own_cluster(workers: int, preload: Sequence[str]) -> LocalCluster:
    context = get_mp_context()  # before the next lines, which it and the tracker would undo
    multiprocessing.resource_tracker.ensure_running()
    if FORKSERVER:
        context.set_forkserver_preload(["distributed", *preload])
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # processes inherit it: Ctrl-C is for the command
    ports = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}  # Dask unpickles what it receives there
    more = {"threads_per_worker": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    cluster = LocalCluster(n_workers=workers, **more, **ports)
    if FORKSERVER:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return cluster


def finish(function: Callable, jobs: Iterator[tuple[Any, Path]], keep: Callable, left: int, total: int, *where) -> None:
    """Calls `keep(what, folder, what came of function(what, folder))` for each of the `left` jobs, (what, folder).

    A job is drawn when a worker is free. One that failed by no fault of its own is tried again at the end. `keep`
    returns what is shown beside the progress. `where` is what `connected` wants.
    """
    if not left:
        return
    again, running, failures = [], {}, 0
    bar = tqdm(total=total, initial=total - left, disable=None, dynamic_ncols=True)  # on a terminal
    with bar, connected(*where) as (client, stopped):
        try:
            while left:
                slots = len(client.nthreads())
                while len(running) < slots and (job := next(jobs, None) or (again and again.pop(0))):
                    work = {"root": ROOT, "work": pickle.dumps(partial(attempt, function, *job))}
                    running[client.submit(eval, TASK, work, key=f"{job[1].name}-{uuid.uuid4().hex}")] = job
                with contextlib.suppress(TimeoutError):  # a look now and then: for Ctrl-C, and for workers that join
                    wait(list(running), timeout=0.5, return_when="FIRST_COMPLETED") if running else stopped.wait(0.5)
                if stopped.is_set():
                    raise KeyboardInterrupt("the same command goes on")
                for future in [future for future in running if future.done()]:
                    job, error = running.pop(future), future.exception()
                    found = error or future.result()
                    future.release()  # else Dask does it again if the worker that holds the result dies
                    if (failures := failures + 1 if error else 0) == ATTEMPTS:
                        hint = f" (its machine has to see {ROOT})" * isinstance(error, ImportError)
                        reason = f"{type(error).__name__}: {shell.one_line(error)[:200]}{hint}"
                        raise StudyError(f"{job[1].name}: {reason}; the same command goes on")
                    if error or found["state"] == "STOPPED":
                        again.append(job)
                    else:
                        left -= 1
                        bar.set_postfix_str(keep(*job, found) or "", refresh=False)
                        bar.update()
        except (CancelledError, CommClosedError):
            raise StudyError("the scheduler is lost; when it is back, the same command goes on") from None


def digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def run_all(
    function: Callable[[dict, Path], Any], payloads: Sequence[dict], folder: Path, *, workers: int = 2,
    scheduler: str = "", label: Callable[[dict], str] = lambda _: "", preload: Sequence[str] = (),
) -> list[Finished]:  # fmt: skip
    """`function(payload, folder of its own)` once for each payload, over all commands ever; in order.

    Payloads and what the function returns JSON can hold; two runs differ in their payloads, or are one. Workers import
    the function, so it must not live in `__main__`, and begin with the modules `preload`. `label` is for the eye.

    Raises RunError if another command is at work in `folder`; StudyError if runs keep failing by no fault of their own,
    or the scheduler is lost; KeyboardInterrupt for Ctrl-C and SIGTERM, once all that runs here has saved and stopped.
    """
    names = [re.sub(r"[^\w=.+]+", "-", label(payload)).strip("-.") + f"-{digest(payload)}" for payload in payloads]
    kept = [folder.resolve() / "runs" / name.lstrip("-") / "kept.json" for name in names]
    keep = lambda payload, place, found: write_json(place / "kept.json", {"payload": payload} | found)  # noqa: E731
    with alone(folder):
        (folder / "runs").mkdir(exist_ok=True)
        jobs = {path: (payload, path.parent) for path, payload in zip(kept, payloads, strict=True) if not path.exists()}
        finish(function, iter(jobs.values()), keep, len(jobs), len(set(kept)), workers, scheduler, preload)
        return [Finished(*map(read_json(path).get, Finished._fields)) for path in kept]


def run_trials(
    objective: Callable[[optuna.Trial, Path], float], study: optuna.Study, folder: Path, *, trials: int,
    settings_of: Callable[[optuna.Trial], dict], open_study: Callable[[], optuna.Study], workers: int = 2,
    scheduler: str = "", describe: Callable[[optuna.Study], str] = lambda _: "", preload: Sequence[str] = (),
) -> None:  # fmt: skip
    """Trials until so many of `study` are finished: complete, pruned, or failed with user_attrs["reason"].

    Those that a command that died has left RUNNING come first, under their numbers, and with what they had drawn.
    `settings_of(trial)` asks the sampler, in this process, for all that `objective` will ask for, and tells the trial's
    run from all others. Workers call `open_study()`. The rest is as in `run_all`; the caller holds `alone`.
    """
    (folder / "runs").mkdir(exist_ok=True)
    begun = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.RUNNING]
    left = max(trials - sum(trial.state.is_finished() for trial in study.trials), 0)

    def jobs() -> Iterator[tuple[int, Path]]:
        for index in range(left):
            trial = optuna.Trial(study, begun[index]._trial_id) if index < len(begun) else study.ask()
            yield trial.number, folder.resolve() / f"runs/trial-{trial.number:04d}-{digest(settings_of(trial))}"

    def keep(number: int, _, found: dict) -> str:
        if found["reason"]:
            study._storage.set_trial_user_attr(study.trials[number]._trial_id, "reason", found["reason"])
        study.tell(number, found["result"], optuna.trial.TrialState[found["state"]])
        return describe(study)

    function = partial(run_trial, objective=objective, open_study=open_study)
    finish(function, jobs(), keep, left, trials, workers, scheduler, preload)
