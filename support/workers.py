"""Trials of one Optuna study, shared by worker processes on any number of machines; each is finished exactly once.

    place = Place(Path("runs/search/first"), "first")  # trials in a journal there; in a database: Place(..., URL)
    study = run_search(place, objective, trials=60, workers=2, settings={...}, sampler=make_sampler)
    runs = run_planned(place, function, payloads, workers=2)  # a Run(result, reason, begun, ended) for each payload

Machines share the storage and nothing else. Every trial has a *key*: a planned run the digest of its settings, a trial
of a search a random one. A trial that is complete, pruned or failed for a `reason` of its own (see `Failed`) is final;
whatever else ended it (a killed worker, Ctrl-C, a full disk, a lost database) leaves its key to be taken up again, in
the same folder. Nothing waits in a queue: a worker looks which keys are neither final nor under way, and begins one of
them; where two begin the same one, the trial with the higher number leaves, marked as `surplus`.

A worker holds a file lock in <folder>/workers for as long as it lives, so its death shows at once, after kill -9 and
from another container as well. Across machines that share only a database, each command gives the signs of life
(Optuna's heartbeats) of those of its workers whose locks are held.

What comes out of a storage is never used as a path, and nothing is ever removed but unheld locks.
"""

import contextlib
import hashlib
import json
import logging
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from support import storage as store
from support.storage import Place, StudyError, open_storage, say

POLL = 0.5  # seconds between two looks at a study
DEATHS = 3  # so many times as many workers as there are may die in a row before the command gives up


class Failed(Exception):
    """Raised by an objective: the trial failed by its own fault, such as divergence, and is not tried again."""


class Run(NamedTuple):
    """A planned run that is over."""

    result: Any  # what its function returned; None if it raised Failed
    reason: str  # of Failed, or empty
    begun: str  # date and time, ISO 8601 in UTC; of the first attempt
    ended: str


def one_line(error: BaseException) -> str:
    """What `error` says, for the screen; the type goes with it where Python itself raised it."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    own = type(error).__module__ != "builtins" and text
    return text if own else f"{type(error).__name__}: {text}".removesuffix(": ")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- studies ---------------------------------------------------------------------------------------------------------


def load(place: Place) -> optuna.Study:
    """The study that exists already; StudyError if there is none."""
    be_quiet()
    try:
        if not place.storage and not place.journal.exists():
            raise KeyError
        return optuna.load_study(study_name=place.name, storage=open_storage(place))
    except KeyError:
        raise StudyError(f"study {place.name}: there is none in {place}") from None


def _open_study(place: Place, settings: dict | None, storage: BaseStorage, **more) -> optuna.Study:
    """The study, begun or gone on with; StudyError if it was begun with other settings."""
    try:
        study = optuna.load_study(study_name=place.name, storage=storage, **more)
    except KeyError:
        study = optuna.create_study(study_name=place.name, storage=storage, load_if_exists=True, **more)
    if settings is not None:
        settings = json.loads(json.dumps(settings))
        if "settings" not in study.user_attrs:
            study.set_user_attr("settings", settings)
        begun = dict(study.user_attrs["settings"])
        names = [name for name in {**settings, **begun} if settings.get(name) != begun.get(name)]
        if names:
            other = "; ".join(f"{name} {begun.get(name)}, not {settings.get(name)}" for name in names)
            raise StudyError(f"study {place.name}: begun with {other}; take another name or its settings")
    return study


def _is_final(trial: FrozenTrial) -> bool:
    done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return done or (trial.state == TrialState.FAIL and "reason" in trial.user_attrs)


def _standing(trials: Iterable[FrozenTrial]) -> dict[str, FrozenTrial]:
    """By key, the trial that counts: the first final one, else one that runs, else the last that was lost."""
    found: dict[str, FrozenTrial] = {}

    def rank(trial: FrozenTrial) -> int:
        return 2 if _is_final(trial) else int(trial.state == TrialState.RUNNING)

    for trial in trials:
        if "key" in trial.user_attrs and "surplus" not in trial.user_attrs:
            key = str(trial.user_attrs["key"])
            if key not in found or rank(trial) > rank(found[key]) or rank(trial) == 0 == rank(found[key]):
                found[key] = trial
    return found


def _is_lost(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and not _is_final(trial)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: one a key, complete, pruned, or failed with user_attrs["reason"]."""
    return [trial for trial in _standing(study.get_trials(deepcopy=False)).values() if _is_final(trial)]


def number(trial: FrozenTrial | optuna.Trial) -> int:
    """Number of the trial that this one repeats, or its own."""
    return int(trial.user_attrs.get("number", trial.number))


def trial_folder(place: Place, trial: FrozenTrial | optuna.Trial) -> Path:
    """Folder of a search's trial; of another study of that name, or of one that was lost, it is another folder."""
    digits = hashlib.sha256(str(trial.user_attrs["key"]).encode()).hexdigest()[:8]
    return place.folder / "runs" / f"trial-{number(trial):04d}-{digits}"


def digest(payload: dict) -> str:
    """By which a planned run is known: SHA-256 of its settings as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def planned_folder(place: Place, payload: dict, label: str = "") -> Path:
    """Folder of a planned run; `label` makes its name readable."""
    words = re.sub(r"[^\w+]+", "-", label).strip("-")
    return place.folder / "runs" / f"{words}-{digest(payload)[:12]}".lstrip("-")


# --- one trial -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the workers of one study have to know; all of it travels to their processes."""

    place: Place
    function: Callable
    total: int  # trials that are wanted
    payloads: dict[str, dict] | None = None  # of planned runs, by digest; None in a search
    label: Callable[[dict], str] | None = None
    settings: dict | None = None
    sampler: Callable[[int], optuna.samplers.BaseSampler] | None = None
    pruner: optuna.pruners.BasePruner | None = None
    seed: int = 0

    def missing(self, found: dict[str, FrozenTrial]) -> int:
        return self.total - sum(_is_final(found[key]) for key in (self.payloads or found) if key in found)


def _claim(job: Job, study: optuna.Study, storage: BaseStorage, me: str) -> int | None:
    """Begins a trial that is neither finished nor under way, and returns its id; None if there is none."""

    def looked(below: float = math.inf) -> dict[str, FrozenTrial]:
        trials = [trial for trial in study.get_trials(deepcopy=False) if trial.number < below]
        mine = [t for t in trials if t.state == TrialState.RUNNING and t.user_attrs.get("worker") == me]
        for trial in mine:  # the answer to the request that began it was lost
            _fail(storage, trial)
        return _standing(trial for trial in trials if trial not in mine)

    def wanted(key: str, found: dict[str, FrozenTrial]) -> bool:
        free = key not in found or _is_lost(found[key])
        full = job.payloads is None and sum(not _is_lost(trial) for trial in found.values()) >= job.total
        return free and not full

    found = looked()
    keys = found if job.payloads is None else job.payloads
    fresh = [uuid.uuid4().hex] if job.payloads is None else []
    key = next((key for key in (*keys, *fresh) if wanted(key, found)), None)
    if key is None:
        return None
    marks = {"key": key, "begun": _now()}
    before = found.get(key)
    if before:
        marks |= {"number": number(before), "begun": before.user_attrs.get("begun", marks["begun"])}
    template = optuna.trial.create_trial(  # with all its marks at once: nobody sees it without them
        state=TrialState.RUNNING,
        params=before and before.params,
        distributions=before and before.distributions,
        intermediate_values=before and before.intermediate_values,
        system_attrs=before and before.system_attrs,
        user_attrs=marks | {"worker": me, "host": f"{socket.gethostname()}, process {os.getpid()}"},
    )
    trial_id = storage.create_new_trial(storage.get_study_id_from_name(study.study_name), template)
    if not wanted(key, looked(below=storage.get_trial(trial_id).number)):  # another worker was faster
        storage.set_trial_user_attr(trial_id, "surplus", True)
        storage.set_trial_state_values(trial_id, TrialState.FAIL)
        return None
    return trial_id


def _turn(job: Job, study: optuna.Study, storage: BaseStorage, me: str, sampler=None) -> bool:
    """Takes one trial and finishes it; False if there was none to take. An error leaves the trial running."""
    trial_id = _claim(job, study, storage, me)
    if trial_id is None:
        return False
    try:
        # anew for every trial, since a study keeps what samplers have seen of it
        study = optuna.load_study(study_name=job.place.name, storage=storage, sampler=sampler, pruner=job.pruner)
        trial = optuna.Trial(study, trial_id)
        value, state = None, TrialState.COMPLETE
        try:
            if job.payloads is None:
                value = float(job.function(trial, trial_folder(job.place, trial)))
                if math.isnan(value):
                    raise Failed("its cost is not a number")
            else:
                payload = job.payloads[trial.user_attrs["key"]]
                label = job.label(payload) if job.label else ""
                trial.set_user_attr("result", job.function(payload, planned_folder(job.place, payload, label)))
                value = 0.0  # Optuna wants one
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Failed as failed:
            trial.set_user_attr("reason", one_line(failed))
            value, state = None, TrialState.FAIL
        trial.set_user_attr("ended", _now())
        study.tell(trial, value, state, skip_if_finished=True)
    except UpdateFinishedTrialError:
        pass  # this machine slept so long that others took it for dead, and now run the trial again
    return True


def _fail(storage: BaseStorage, trial: FrozenTrial) -> None:
    """Ends a trial without a worker; its key is free again."""
    with contextlib.suppress(UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


# --- workers ---------------------------------------------------------------------------------------------------------


def be_quiet() -> None:
    """Optuna logs every trial, warns of its experiments and of repeated reports; SQLAlchemy logs cut connections."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("sqlalchemy").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "The reported value is ignored")
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed process leaves behind


def _lock(place: Place, worker: str) -> filelock.FileLock:
    return filelock.FileLock(place.folder / "workers" / f"{worker}.lock")


def _work(job: Job, me: str, index: int, reasons) -> None:
    """A worker's life: trials until none is missing. Why it died it says into the pipe `reasons`, and nowhere else."""

    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.getsignal(signal.SIGINT)(signal.SIGINT, None)

    try:
        # Ctrl-C in a terminal reaches every process; here only the one word of the first process counts, so that
        # nobody is interrupted twice, and it has the effect of a Ctrl-C, also on who handles that on his own
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what a script puts behind
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGTERM, stop)
        threading.excepthook = sys.unraisablehook = lambda *_: None  # libraries' threads; see the docstring
        be_quiet()
        with _lock(job.place, me):
            storage = open_storage(job.place, store.PATIENCE)
            study = _open_study(job.place, job.settings, storage)
            seed = np.random.SeedSequence([job.seed, index, len(study.get_trials(deepcopy=False))]).generate_state(1)
            sampler = job.sampler and job.sampler(int(seed[0]))
            while multiprocessing.parent_process().is_alive():
                if not job.missing(_standing(study.get_trials(deepcopy=False))):
                    break
                if not _turn(job, study, storage, me, sampler):
                    time.sleep(POLL)  # the last ones are under way; should a worker die, another takes over
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reasons.send((one_line(error), traceback.format_exc()))
        sys.exit(1)


class Worker(NamedTuple):
    """A worker as the first process sees it."""

    process: multiprocessing.process.BaseProcess
    reasons: Any  # receiving end of a pipe of its own: a killed worker can block nobody else's

    def reason(self) -> tuple[str, str]:
        """Why it died, and the traceback."""
        with contextlib.suppress(EOFError, OSError):
            if self.reasons.poll():
                return self.reasons.recv()
        code = self.process.exitcode
        return (f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"), ""


def _start(job: Job, me: str, index: int, preload: Sequence[str]) -> Worker:
    """Starts a worker: a fork of a process that has done the slow imports and nothing else, or else anew."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
    else:
        context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"  # processes that fight for cores lose time
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(job, me, index, sender))
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # it would unblock the signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # children inherit it: no traceback of half a start
    try:
        process.start()
    finally:
        sender.close()
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return Worker(process, receiver)


def _locks(place: Place, needed: set[str]) -> dict[str, bool]:
    """By worker of this folder, whether it lives. A dead one that is not `needed` any more is forgotten."""
    alive = {}
    for path in (place.folder / "workers").glob("*.lock"):
        try:
            with _lock(place, path.stem).acquire(blocking=False):
                alive[path.stem] = False
                if path.stem not in needed:
                    path.unlink(missing_ok=True)
        except filelock.Timeout:
            alive[path.stem] = True
    return alive


def _recover(place: Place, study: optuna.Study, storage: BaseStorage, beaten: dict[int, float]) -> list[FrozenTrial]:
    """Ends the trials of dead workers, gives signs of life for the living; returns the trials that run.

    `beaten` keeps when a sign was given for a trial, so that it is given every HEARTBEAT seconds, and once for another
    machine's: its worker may have died before the first one, and would be waited for in vain.
    """
    running = [t for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if "key" in t.user_attrs]
    alive = _locks(place, {str(trial.user_attrs.get("worker")) for trial in running})
    for trial in list(running):
        lives, now = alive.get(str(trial.user_attrs.get("worker"))), time.monotonic()
        if lives is False or (lives is None and not place.storage):
            _fail(storage, trial)
            running.remove(trial)
        elif place.storage and (trial.number not in beaten or (lives and now - beaten[trial.number] > store.HEARTBEAT)):
            storage.record_heartbeat(trial._trial_id)
            beaten[trial.number] = now
    if place.storage:
        optuna.storages.fail_stale_trials(study)
    return running


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM are Ctrl-C, even in a program that a script has put behind, which ignores it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, signal.default_int_handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number_, handler in previous.items():
            signal.signal(number_, handler)


def _supervise(job: Job, count: int, preload: Sequence[str], describe: Callable | None) -> optuna.Study:
    """Runs `count` workers until no trial is missing; starts others for those that die."""
    be_quiet()
    place = job.place
    storage = open_storage(place)
    study = _open_study(place, job.settings, storage, pruner=job.pruner)
    (place.folder / "workers").mkdir(parents=True, exist_ok=True)
    (place.folder / "runs").mkdir(exist_ok=True)
    workers: dict[str, Worker] = {}
    started, dead, said, looked, beaten = 0, [], "", time.monotonic(), {}
    left = job.missing(_standing(study.get_trials(deepcopy=False)))
    try:
        with _stoppable(), tqdm(total=job.total, initial=job.total - left, disable=None, dynamic_ncols=True) as bar:
            while left > 0:
                for worker in [worker for worker in workers if not workers[worker].process.is_alive()]:
                    if workers[worker].process.exitcode:
                        dead.append(workers[worker].reason())
                    del workers[worker]
                if len(dead) >= DEATHS * count:
                    error = StudyError(f"{len(dead)} workers died in a row, the last one of: {dead[-1][0]}")
                    error.add_note(dead[-1][1])
                    raise error
                if time.monotonic() - looked > store.GRACE / 2:
                    beaten.clear()  # the database was away: first a sign for everybody, who else all seem dead
                looked = time.monotonic()
                running = _recover(place, study, storage, beaten)
                while len(workers) < min(count, left):
                    me = uuid.uuid4().hex
                    workers[me] = _start(job, me, started, preload)
                    started += 1
                text = _waiting(job, running, set(workers)) or (describe(study) if describe else "")
                bar.set_postfix_str(text)
                if bar.disable and text.startswith("waiting") and text != said:
                    said = text
                    say(text)
                time.sleep(POLL)
                left, before = job.missing(_standing(study.get_trials(deepcopy=False))), left
                bar.update(before - left)
                dead = dead if left == before else []
            for worker in workers.values():
                worker.process.join()
            _recover(place, study, storage, beaten)
    except BaseException as error:
        _stop(workers.values())
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(StudyError, OSError):
                _recover(place, study, storage, beaten)  # another machine shall not have to wait for these
            raise KeyboardInterrupt("the same command goes on with the study") from None
        raise
    finally:
        for worker in workers.values():
            worker.process.kill()
    return study


def _stop(workers: Iterable[Worker]) -> None:
    """Tells the workers to save and stop, and waits until they have."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join()


def _waiting(job: Job, running: list[FrozenTrial], mine: set[str]) -> str:
    """What is said if no worker of this command has anything to do, because others run all that is left."""
    others = [t for t in running if job.payloads is None or str(t.user_attrs["key"]) in job.payloads]
    if not others or any(trial.user_attrs.get("worker") in mine for trial in others):
        return ""
    hosts = sorted({" ".join(str(trial.user_attrs.get("host")).split())[:80] for trial in others})
    sign = f"; without a sign of life they are taken over after {store.GRACE} s" if job.place.storage else ""
    return f"waiting for trials of {'; '.join(hosts)}{sign}"


# --- what drivers call -----------------------------------------------------------------------------------------------


def run_search(
    place: Place,
    objective: Callable[[optuna.Trial, Path], float],
    *,
    trials: int,
    workers: int,
    settings: dict,
    sampler: Callable[[int], optuna.samplers.BaseSampler],
    pruner: optuna.pruners.BasePruner | None = None,
    seed: int = 0,
    preload: Sequence[str] = (),
    describe: Callable[[optuna.Study], str] | None = None,
) -> optuna.Study:
    """Runs trials until so many are finished, over all workers, machines and restarts; returns the study.

    `objective(trial, folder)` returns the cost, or raises optuna.TrialPruned or Failed; it may find in the folder what
    an interrupted attempt has left. It runs in a worker process, hence has to be pickled: a function of a module, or a
    functools.partial of one. `sampler(seed)` makes a worker's sampler. `preload` names the driver's modules: they are
    imported once for all workers. `describe(study)` is shown beside the progress bar.

    Raises StudyError if the study was begun with other `settings`, if it is out of reach or damaged, or if workers keep
    dying; KeyboardInterrupt, after all have saved and stopped, for Ctrl-C and SIGTERM.
    """
    job = Job(place, objective, trials, None, None, settings, sampler, pruner, seed)
    return _supervise(job, workers, preload, describe)


def run_planned(
    place: Place,
    function: Callable[[dict, Path], Any],
    payloads: Sequence[dict],
    *,
    workers: int,
    label: Callable[[dict], str] | None = None,
    preload: Sequence[str] = (),
    describe: Callable[[optuna.Study], str] | None = None,
) -> list[Run]:
    """Runs `function(payload, folder)` once for every payload, over all machines and commands ever; returns in order.

    A payload is a dictionary of settings that JSON can hold; what is not in it does not tell two runs apart. What the
    function returns JSON can hold as well: it is kept in the study. `label(payload)` makes the folder's name readable.
    Only these payloads are run, whatever else the study has left undone. The rest is as in `run_search`.
    """
    known = {digest(payload): payload for payload in payloads}
    job = Job(place, function, len(known), known, label)
    found = _standing(_supervise(job, workers, preload, describe).get_trials(deepcopy=False))
    attributes = [found[digest(payload)].user_attrs for payload in payloads]
    return [Run(attrs.get("result"), attrs.get("reason", ""), attrs["begun"], attrs["ended"]) for attrs in attributes]
