"""Runs and trials on Dask's workers: this command's own, or those of a cluster (`dask scheduler`, `dask worker`).

    runs = run_all(function, payloads, folder, workers=2)  # each once; what is kept in folder is not run again
    study = run_trials(objective, prepare, study, folder, trials=60, workers=2)

The command alone decides and keeps: one at a time in a folder, says a lock. A worker that dies is Dask's business: the
task runs again on another one, in the same folder. A command that dies leaves trials that run; the next one takes them
up. Workers on other machines see the same folders under the same names.
"""

import contextlib
import hashlib
import importlib
import json
import logging
import math
import multiprocessing.resource_tracker
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import dask
import optuna
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, wait
from distributed.utils import get_mp_context
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from tqdm.auto import tqdm

from support import shell
from support.folder import write_json

ERRORS = 3  # so many trials may raise before a search gives up
SETTINGS = {
    "distributed.worker.multiprocessing-method": "forkserver",
    "distributed.scheduler.allowed-failures": 3,  # workers that may die of one task
    "distributed.worker.profile.enabled": False,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.admin.tick.limit": "1h",  # says that the event loop was unresponsive
}


class StudyError(Exception):
    """It cannot go on; one line for the screen."""


class Failed(Exception):
    """Raised by a function: its own fault, such as divergence; it is not tried again."""


class Finished(NamedTuple):
    """A planned run that is over."""

    result: Any  # what its function returned; None if it raised Failed
    reason: str  # of Failed, or empty
    begun: str
    ended: str


# --- workers ---------------------------------------------------------------------------------------------------------


class Stop(WorkerPlugin):
    """When the command ends, what still runs in its workers saves and stops."""

    def setup(self, worker):
        shell.STOP.clear()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore")

    def teardown(self, worker):
        shell.STOP.set()


@contextlib.contextmanager
def connected(workers: int, scheduler: str, preload: Sequence[str]) -> Iterator[Client]:
    """A client of the cluster at `scheduler`, or of one of this command's own."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    if scheduler:
        try:
            with dask.config.set(SETTINGS):
                client = Client(scheduler, timeout=10)
        except (OSError, ValueError) as error:
            raise StudyError(f"--scheduler {scheduler}: out of reach ({shell.one_line(error)[:150]})") from None
        with client:
            try:
                client.wait_for_workers(1, timeout=60)
                for module in preload:  # a worker that cannot import what it is sent ends, and nobody hears of it
                    client.run(importlib.import_module, module)
            except (ImportError, TimeoutError) as error:
                raise StudyError(f"--scheduler {scheduler}: its workers: {shell.one_line(error)[:150]}") from None
            yield client
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        get_mp_context().set_forkserver_preload(["distributed", *preload])
        multiprocessing.resource_tracker.ensure_running()  # it would unblock the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for this process alone; children inherit
        try:
            cluster = LocalCluster(
                n_workers=workers, threads_per_worker=1, memory_limit=0, host="127.0.0.1", dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )  # fmt: skip
            client = stack.enter_context(Client(stack.enter_context(cluster)))
            client.register_plugin(Stop())
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield client


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(f"{folder}: another command is at work here; wait until it has finished") from None
    with lock:
        lock.release()
        yield


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def attempt(function: Callable, what: Any, folder: Path) -> dict:
    """In a worker: what came of `function(what, folder)`."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".busy"):  # a worker that the scheduler has lost may still be at work there
        found = {"result": None, "reason": "", "state": "COMPLETE", "begun": now()}
        try:
            found["result"] = function(what if not isinstance(what, tuple) else optuna.Trial(*what), folder)
        except optuna.TrialPruned:
            found["state"] = "PRUNED"
        except Failed as failed:
            found |= {"reason": shell.one_line(failed), "state": "FAIL"}
        except KeyboardInterrupt:  # it has saved; in a thread of Dask's this would end the worker
            raise RuntimeError("stopped") from None
        return found | {"ended": now()}


def outcome(future) -> dict | str:
    """What `attempt` returned, or in one line why it did not."""
    try:
        return future.result()
    except KilledWorker:
        return "its workers were killed, again and again"
    except Exception as error:
        return f"{type(error).__name__}: {shell.one_line(error)[:300]}"


# --- planned runs ----------------------------------------------------------------------------------------------------


def run_all(
    function: Callable[[dict, Path], Any],
    payloads: Sequence[dict],
    folder: Path,
    *,
    workers: int = 2,
    scheduler: str = "",
    label: Callable[[dict], str] = lambda _: "",
    preload: Sequence[str] = (),
) -> list[Finished]:
    """`function(payload, its folder)` for each payload, in order; each result is kept, and that run never again."""
    places = [planned_folder(folder, payload, label(payload)) for payload in payloads]
    kept = {place: place.with_name(f"{place.name}.json") for place in places}
    with alone(folder):
        missing = {place: payload for place, payload in zip(places, payloads, strict=True) if not kept[place].exists()}
        errors = []
        bar = tqdm(total=len(kept), initial=len(kept) - len(missing), disable=None, dynamic_ncols=True)
        with connected(workers, scheduler, preload) if missing else contextlib.nullcontext() as client, bar:
            todo = {client.submit(attempt, function, payload, place, pure=False): place
                    for place, payload in missing.items()}  # fmt: skip
            while todo:
                for future in wait(list(todo), return_when="FIRST_COMPLETED").done:
                    place = todo.pop(future)
                    found = outcome(future)
                    if isinstance(found, str):
                        errors.append(f"{place}: {found}")
                    else:
                        write_json(kept[place], {"payload": missing[place]} | found)
                    bar.update()
    if errors:
        raise StudyError(f"{len(errors)} of {len(kept)} runs failed, the first one, {errors[0]}")
    found = [json.loads(kept[place].read_text()) for place in places]
    return [Finished(one["result"], one["reason"], one["begun"], one["ended"]) for one in found]


def planned_folder(folder: Path, payload: dict, label: str = "") -> Path:
    digest = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()[:12]
    words = re.sub(r"[^\w+]+", "-", label).strip("-")
    return folder.resolve() / "runs" / f"{words}-{digest}".lstrip("-")


# --- a search --------------------------------------------------------------------------------------------------------


def run_trials(
    objective: Callable[[optuna.Trial, Path], float],
    prepare: Callable[[optuna.Trial], Any],
    study: optuna.Study,
    folder: Path,
    *,
    trials: int,
    workers: int = 2,
    scheduler: str = "",
    preload: Sequence[str] = (),
    describe: Callable[[optuna.Study], str] = lambda _: "",
) -> None:
    """Finishes so many trials of `study`, whose storage workers can open as well; those that run are gone on with.

    `prepare(trial)` asks the sampler for all that `objective(trial, folder)` is going to ask for.
    """
    todo, errors, begun = {}, [], [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    remote = optuna.Study(study.study_name, study._storage, pruner=study.pruner)  # the sampler stays here
    left = trials - sum(trial.state.is_finished() for trial in study.trials)
    bar = tqdm(total=trials, initial=trials - left, disable=None, dynamic_ncols=True)
    with connected(workers, scheduler, preload) if left > 0 else contextlib.nullcontext() as client, bar:
        while left > 0:
            while len(todo) < min(left, max(1, sum(client.nthreads().values()))):
                trial = optuna.Trial(study, begun.pop(0)._trial_id) if begun else study.ask()
                prepare(trial)
                place = (folder / "runs" / f"trial-{trial.number:04d}").resolve()
                todo[client.submit(attempt, objective, (remote, trial._trial_id), place, pure=False)] = trial
            with contextlib.suppress(TimeoutError):  # now and then: workers may have come
                wait(list(todo), timeout=2, return_when="FIRST_COMPLETED")
            for future in [future for future in todo if future.done()]:
                trial, found = todo.pop(future), outcome(future)
                if isinstance(found, dict) and found["result"] is not None and math.isnan(found["result"]):
                    found |= {"state": "FAIL", "reason": "its cost is not a number"}
                if isinstance(found, str):
                    errors.append(f"trial {trial.number}: {found}")
                    begun.append(trial)
                    if len(errors) == ERRORS:
                        raise StudyError(errors[-1])
                    continue
                if found["reason"]:
                    trial.set_user_attr("reason", found["reason"])
                study.tell(trial.number, found["result"] if found["state"] == "COMPLETE" else None,
                           TrialState[found["state"]])  # fmt: skip
                left -= 1
                bar.update()
                bar.set_postfix_str(describe(study))
