"""Search hyper-parameters with Optuna: the lowest validation cost on the 95 %, over combinations of regularisations.

    python search.py --trials 60 --workers 2

Optuna's storage is the only thing that workers share: a journal file, or a database that any number of machines reach.
"""

import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import psutil
import sqlalchemy
import torch
import tyro
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState
from tqdm import tqdm

import data
from report import mean_and_interval
from shell import errors_in_one_line, one_line, parse, replacing
from train import Config, RunError, check_ranges, command, flag, resolve, train, warn

SEARCH_FOLDS = (0, 1, 2)  # the only ones that choose anything
HEARTBEAT, GRACE = 10, 40  # seconds between a worker's signs of life in a database, and without one until it is dead

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchOptions:
    """Search hyper-parameters with Optuna. A setting of train.py that is given here is fixed, and not searched."""

    config: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    study: str = "search"  # its name; the same name again goes on with the same study
    trials: int = 60  # finished trials, over all workers and restarts
    workers: int = 2  # processes, with one thread each
    storage: str = ""  # URL of a database that several machines share; by default a journal file beside the runs
    runs_dir: str = "runs"  # folder of all runs; the study is kept in its folder search
    augment: bool = False  # search noise and geometry as well
    folds_per_trial: int = 1  # of the search folds 0, 1, 2: the cost of a trial is the mean over them
    prune: bool = True  # stop hopeless trials early
    confirm: int = 0  # then run the best trial and the baseline on so many folds that the search never saw
    report: str = ""  # only write the report of this study

    def __post_init__(self):
        folds = data.FOLDS - len(SEARCH_FOLDS)
        check_ranges(self, {"trials": (1, 1e6), "workers": (1, 1000), "folds_per_trial": (1, 3), "confirm": (0, folds)})
        for name in ("study", "report"):
            if Path(getattr(self, name)).name != getattr(self, name):
                raise ValueError(f"{flag(name)} {getattr(self, name)}: allowed is a name without slashes")
        if self.config.fold:
            raise ValueError(f"--fold {self.config.fold}: a search runs on the folds {SEARCH_FOLDS}; drop --fold")
        if self.confirm == 1:
            raise ValueError("--confirm 1: one fold has no interval; give 2 or more")


# --- the space -------------------------------------------------------------------------------------------------------


def suggest(trial: optuna.Trial, fixed: Config, given: set[str], augment: bool) -> Config:
    """The settings of one trial: `fixed`, with everything that is not in `given` searched.

    A strength is asked for only where its regularisation is used.
    """
    found = {}

    def strength(name: str, low: float, high: float, log: bool = False, switch: str = "") -> None:
        if name not in given and (not switch or trial.suggest_categorical(f"use_{switch}", [False, True])):
            found[name] = trial.suggest_float(name, low, high, log=log)

    strength("lr", 1e-4, 1e-2, log=True)
    if "norm" not in given:
        found["norm"] = trial.suggest_categorical("norm", ["none", "batch", "layer"])
    strength("l1", 1e-7, 1e-3, log=True, switch="l1")
    strength("l2", 1e-6, 1e-1, log=True, switch="l2")
    strength("dropout", 0.05, 0.7, switch="dropout")
    if augment:
        strength("noise", 0.02, 0.6, switch="noise")
        for name, high in (("rotate", 30), ("zoom", 0.3), ("shift", 4), ("shear", 0.3), ("elastic", 60)):
            strength(name, 0, high, switch="geometry")
    return replace(fixed, **found)


# --- storage ---------------------------------------------------------------------------------------------------------


def open_storage(url: str, journal: Path) -> optuna.storages.BaseStorage:
    """The database at `url`, or else, where that is empty, the file `journal`."""
    if not url:
        journal.parent.mkdir(parents=True, exist_ok=True)
        # Optuna's usual lock, a symbolic link, hangs for ever on a relative path if its owner is killed
        return JournalStorage(JournalFileBackend(str(journal), JournalFileOpenLock(str(journal), grace_period=5)))
    postgres = sqlalchemy.make_url(url).get_backend_name() == "postgresql"
    return RDBStorage(
        url,
        engine_kwargs={"pool_pre_ping": True} | ({"connect_args": {"connect_timeout": 10}} if postgres else {}),
        heartbeat_interval=HEARTBEAT,
        grace_period=GRACE,
        heartbeat_stale_trial_callback=try_again,  # for the workers of a machine that went away as a whole
    )


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turns what Optuna and SQLAlchemy raise into a RunError with one line, without the password in `url`."""
    try:
        yield
    except sqlalchemy.exc.ArgumentError:
        raise RunError(
            "--storage: not a database URL; allowed is one such as postgresql://user@host/database"
        ) from None
    except (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = one_line(getattr(cause, "orig", None) or cause or error)[:200]
        password = sqlalchemy.make_url(url).password if url else None
        shown = sqlalchemy.make_url(url).render_as_string(hide_password=True) if url else "the journal"
        reason = reason.replace(str(password), "***") if password else reason
        raise RunError(f"--storage {shown}: out of reach ({reason}); what was finished is kept there") from None


def open_study(options: SearchOptions, given: set[str]) -> optuna.Study:
    """The study of these options, begun or gone on with; one of the same name with other settings is a RunError."""
    settings = asdict(options.config) | {"given": sorted(given)}
    settings |= {name: getattr(options, name) for name in ("augment", "folds_per_trial", "prune")}
    storage = open_storage(options.storage, journal(options))
    study = optuna.create_study(storage=storage, study_name=options.study, load_if_exists=True, pruner=make_pruner())
    if "settings" not in study.user_attrs:
        study.set_user_attr("settings", settings)
    begun = study.user_attrs["settings"]
    other = [
        f"{name} {begun.get(name)}, not {settings[name]}" for name in settings if settings[name] != begun.get(name)
    ]
    if other:
        raise RunError(f"--study {options.study}: begun with {'; '.join(other)}; take another name or its settings")
    return study


def load_study(options: SearchOptions) -> optuna.Study:
    """The study that exists already; RunError if there is none."""
    name = options.report or options.study
    try:
        if not options.storage and not journal(options).exists():
            raise KeyError
        return optuna.load_study(study_name=name, storage=open_storage(options.storage, journal(options)))
    except KeyError:
        place = "in --storage" if options.storage else f"at {journal(options)}"
        raise RunError(f"--report {name}: there is no such study {place}") from None


# --- trials ----------------------------------------------------------------------------------------------------------


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: complete, pruned or failed, but for those that were queued again or are one too many."""
    return [trial for trial in not_repeated(study) if trial.state.is_finished() and "surplus" not in trial.user_attrs]


def not_repeated(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were not queued again."""
    trials = study.get_trials(deepcopy=False)
    repeated = {number for trial in trials for number in trial.system_attrs.get("retry_history", [])}
    return [trial for trial in trials if trial.number not in repeated]


def original(trial: FrozenTrial) -> int:
    """Number of the trial that this one repeats, or its own."""
    return trial.system_attrs.get("failed_trial", trial.number)


def me() -> list:
    """This process, told from another one that gets its number later."""
    return [socket.gethostname(), os.getpid(), psutil.Process().create_time()]


def is_dead(worker: list) -> bool:
    """Whether a worker of this machine is no more; of another machine's nothing is known."""
    host, pid, created = worker
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(pid)
        other = abs(process.create_time() - created) > 5  # seconds; the time moves a little when the clock is set
        return other or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues a failed trial once more; it goes on from its last checkpoint. One that lost two workers stays failed."""
    trials = study.get_trials(deepcopy=False)
    history = [trials[number] for number in trial.system_attrs.get("retry_history", [])]
    deaths = [failed for failed in (*history, trial) if "interrupted" not in failed.user_attrs]
    if len(deaths) < 2:
        RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)(study, trial)


def recover(study: optuna.Study) -> None:
    """Queues once more what was interrupted, and what dead workers of this machine have left running."""
    for trial in not_repeated(study):
        if trial.state == TrialState.FAIL and "interrupted" in trial.user_attrs:
            try_again(study, trial)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        nobody = "worker" not in trial.user_attrs and time.time() - trial.datetime_start.timestamp() > GRACE
        if nobody or ("worker" in trial.user_attrs and is_dead(trial.user_attrs["worker"])):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except ValueError:  # another machine was faster
                continue
            try_again(study, trial)


class Surplus(Exception):
    """Other workers have begun as many trials as are wanted."""


def leave(trial: optuna.Trial) -> None:
    """Ends a trial that nobody wants; it does not count."""
    trial.set_user_attr("surplus", True)
    raise Surplus


@contextmanager
def at_work(trial: optuna.Trial) -> Iterator[None]:
    """Inside, the trial is this process's; Ctrl-C marks it as one that `recover` queues again."""
    trial.set_user_attr("worker", me())
    try:
        yield
    except KeyboardInterrupt:
        trial.set_user_attr("interrupted", True)
        raise


class Failed(Exception):
    """The trial failed for the reason that is given, which is no fault of the program."""


def run_trial(trial: optuna.Trial, options: SearchOptions, given: set[str], folder: Path) -> float:
    """Trains one trial: the mean over its folds of the lowest validation cost. The test set is not even read."""
    *earlier, this = trial.study.get_trials(deepcopy=False)[: trial.number + 1]
    begun = {original(t) for t in earlier if t.state != TrialState.WAITING and "surplus" not in t.user_attrs}
    if original(this) not in begun and len(begun) >= options.trials:
        leave(trial)
    config = suggest(trial, options.config, given, options.augment)
    costs = []
    for turn, fold in enumerate(SEARCH_FOLDS[: options.folds_per_trial]):

        def report(row: dict, best: dict, turn=turn) -> None:
            so_far = [*costs, best["val_loss"]]
            trial.report(sum(so_far) / len(so_far), turn * (config.epochs + 1) + row["epoch"])
            if options.prune and trial.should_prune():
                raise optuna.TrialPruned

        name = f"trial-{original(this):04d}" + (f"-fold-{fold}" if options.folds_per_trial > 1 else "")
        try:
            with at_work(trial):
                result = run_once(
                    replace(config, fold=fold), folder, name, splits=("train", "val"), on_evaluation=report
                )
        except optuna.TrialPruned:
            (folder / name / "last.pt").unlink(missing_ok=True)
            raise
        if result["status"] == "diverged":
            trial.set_user_attr("reason", f"diverged after {result['step']} updates")
            raise Failed
        costs.append(result["best"]["val_loss"])
    return sum(costs) / len(costs)


def run_once(config: Config, folder: Path, name: str, **more) -> dict:
    """The result of `train` in folder/name: begun, gone on with, or only read, as the case may be."""
    begun = (folder / name / "config.json").exists()
    if not begun:
        shutil.rmtree(folder / name, ignore_errors=True)  # killed before it had begun
    place = {"resume": str(folder / name)} if begun else {"runs_dir": str(folder), "name": name}
    result = train(config, **place, quiet=True, **more)
    (folder / name / "last.pt").unlink(missing_ok=True)  # nobody goes on with a finished run
    return result


def make_pruner() -> optuna.pruners.BasePruner:
    """Asynchronous successive halving: at 40, 80, 160 ... epochs the better half of those that came so far goes on.

    Replayed in 20 random orders over 22 complete trials of 1000 epochs, this took 23 % of their epochs and never lost
    the best one; the median after 5 trials and 30 epochs took 44 % and lost it 5 times; halving from 10 epochs took
    16 % and lost it 16 times.
    """
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=40, reduction_factor=2)


def missing(study: optuna.Study, trials: int) -> int:
    """How many of the `trials` that are wanted are not finished."""
    return trials - len(finished(study))


# --- workers, for every study ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What the workers of one study have to know; all of it travels to their processes."""

    trials: int  # wanted in all
    storage: str  # as in SearchOptions
    open_study: Callable[[], optuna.Study]
    run_trial: Callable[[optuna.Trial], float]
    missing: Callable[[optuna.Study], int]  # how many of the wanted trials are not finished
    enqueue: Callable[[optuna.Study], None] | None = None  # keeps trials queued; no others are begun then
    seed: int = 0  # of the sampler, for trials that nobody queued


def work(job: Job, errors, index: int) -> None:
    """One worker: takes trials until enough are finished, and waits for those that others still run."""
    become_worker()
    try:
        with storage_errors(job.storage):
            study = job.open_study()
            seed = np.random.SeedSequence([job.seed, index, len(study.trials)]).generate_state(1)[0]
            study.sampler = optuna.samplers.TPESampler(
                multivariate=True, group=True, constant_liar=True, seed=int(seed)
            )
            while multiprocessing.parent_process().is_alive() and (left := job.missing(study)) > 0:
                states = [trial.state for trial in study.get_trials(deepcopy=False)]
                if TrialState.WAITING not in states and (job.enqueue or states.count(TrialState.RUNNING) >= left):
                    time.sleep(0.5)  # the last ones are under way; should a worker die, another takes over
                else:
                    try:
                        study.optimize(job.run_trial, n_trials=1, catch=(Failed, Surplus))
                    except ValueError as error:
                        if not str(error).startswith("Cannot tell"):
                            raise
                        # this machine slept so long that another one took the trial for dead, and runs it again
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # the first process says it, once for all workers
        expected = isinstance(error, RunError | data.DataError)
        errors.put(one_line(error) if expected else f"a worker failed: {type(error).__name__}: {one_line(error)}")
        sys.exit(1)


def process_context() -> multiprocessing.context.BaseContext:
    """How workers start: as forks of a process that has done the slow imports and nothing else, or else anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["search"])
    return context


def become_worker() -> None:
    """One thread a process: processes that fight for cores lose time."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore of the system's, which a killed worker would leave behind
    be_quiet()


def be_quiet() -> None:
    """Optuna logs every trial and warns that what is used here is experimental."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


def supervise(job: Job, count: int) -> optuna.Study:
    """Runs `count` workers until no trial is missing; restarts those that die."""
    study = job.open_study()
    context = process_context()
    errors = context.SimpleQueue()
    workers, started = [], 0
    try:
        with tqdm(total=job.trials, unit="trial", disable=None) as bar:
            while (left := job.missing(study)) > 0:
                bar.update(job.trials - left - bar.n)
                for worker in [worker for worker in workers if not worker.is_alive()]:
                    workers.remove(worker)
                    if not errors.empty():
                        raise RunError(errors.get())
                recover(study)
                if job.enqueue:
                    job.enqueue(study)
                if started >= 10 * count + job.trials:
                    raise RunError(f"{started} workers have died; run train.py alone to see why")
                while len(workers) < count:
                    workers.append(context.Process(target=work, args=(job, errors, started)))
                    workers[-1].start()
                    started += 1
                time.sleep(0.5)
            bar.update(job.trials - bar.n)
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid, signal.SIGINT)  # a terminal has told them too, but not everybody has a terminal
        for worker in workers:
            worker.join()
        recover(study)
        raise KeyboardInterrupt("the same command goes on with the study") from None
    finally:
        for worker in workers:
            worker.kill()
    return study


def search(options: SearchOptions, given: set[str]) -> optuna.Study:
    """Runs workers until `options.trials` trials are finished."""
    job = Job(
        trials=options.trials,
        storage=options.storage,
        open_study=partial(open_study, options, given),
        run_trial=partial(run_trial, options=options, given=given, folder=study_folder(options)),
        missing=partial(missing, trials=options.trials),
        seed=options.config.seed,
    )
    return supervise(job, options.workers)


# --- confirmation ----------------------------------------------------------------------------------------------------


def confirm(study: optuna.Study, options: SearchOptions) -> None:
    """Runs the best trial and the baseline on folds that the search never saw; writes confirmed.md for the report."""
    folds = [fold for fold in range(data.FOLDS) if fold not in SEARCH_FOLDS][: options.confirm]
    best = config_of(study.best_trial, study)
    methods = {"baseline": fixed_of(study), f"trial {original(study.best_trial)}": best}
    with ProcessPoolExecutor(options.workers, process_context(), initializer=become_worker) as pool:
        futures = {
            method: [
                pool.submit(
                    run_once,
                    replace(config, fold=fold),
                    study_folder(options),
                    f"confirm-{method.replace(' ', '-')}-fold-{fold}",
                )
                for fold in folds
            ]
            for method, config in methods.items()
        }
        for future in tqdm([future for runs in futures.values() for future in runs], unit="run", disable=None):
            future.result()
    measured = {
        method: {
            measure: [run.result()["best"][measure] for run in runs]
            for measure in ("val_loss", "val_error", "test_error")
        }
        for method, runs in futures.items()
    }
    lines = [
        f"## Confirmed on folds {folds[0]} to {folds[-1]}, which the search never saw",
        "",
        f"Mean over {len(folds)} folds and its 95 % interval, at the lowest validation cost of each run.",
        "",
        "| | validation cost | validation error | test error |",
        "|---|---|---|---|",
    ]
    for method, values in measured.items():
        cost, *errors = map(mean_and_interval, values.values())
        lines.append(
            f"| {method} | {cost[0]:.4f} ± {cost[1]:.4f} | "
            + " | ".join(f"{mean:.2%} ± {half:.2%}" for mean, half in errors)
            + " |"
        )
    baseline, other = measured.values()
    mean, half = mean_and_interval(np.subtract(other["test_error"], baseline["test_error"]))
    lines += [
        "",
        f"Difference of the test errors, paired by fold: {mean * 100:+.2f} ± {half * 100:.2f} percentage points.",
    ]
    with replacing(study_folder(options) / "confirmed.md") as path:
        path.write_text("\n".join(lines) + "\n")


# --- report ----------------------------------------------------------------------------------------------------------


def fixed_of(study: optuna.Study) -> Config:
    """The settings of the study with everything that it searches at its default: the baseline."""
    settings = study.user_attrs["settings"]
    return Config(**{f.name: settings[f.name] for f in fields(Config)})


def config_of(trial: FrozenTrial, study: optuna.Study) -> Config:
    """The settings of a finished trial."""
    settings = study.user_attrs["settings"]
    again = optuna.trial.FixedTrial(trial.params)
    return suggest(again, fixed_of(study), set(settings["given"]), settings["augment"])


def at_border(trial: FrozenTrial) -> list[str]:
    """The parameters of `trial` that lie within 2 % of an end of their range, on the range's own scale."""
    found = []
    for name, distribution in trial.distributions.items():
        if isinstance(distribution, optuna.distributions.FloatDistribution):
            scale = np.log if distribution.log else float
            low, value, high = scale(distribution.low), scale(trial.params[name]), scale(distribution.high)
            if not 0.02 <= (value - low) / (high - low) <= 0.98:
                found.append(f"{name} {trial.params[name]:.3g}, in {distribution.low:g} to {distribution.high:g}")
    return found


def write_report(study: optuna.Study, options: SearchOptions) -> Path:
    """Writes report.md and its figures in the study's folder; returns the path of the report."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    folder = study_folder(options)
    folder.mkdir(parents=True, exist_ok=True)
    done = finished(study)
    complete = sorted((t for t in done if t.state == TrialState.COMPLETE), key=lambda t: t.value)
    if not complete:
        raise RunError(f"--report {study.study_name}: no trial is complete yet; run more --trials")
    pruned, failed = (sum(t.state == state for t in done) for state in (TrialState.PRUNED, TrialState.FAIL))
    best, folds = complete[0], SEARCH_FOLDS[: study.user_attrs["settings"]["folds_per_trial"]]
    lines = [
        f"# Study {study.study_name}",
        "",
        f"{len(done)} trials: {len(complete)} complete, {pruned} pruned ({pruned / len(done):.0%}), {failed} failed. "
        f"The cost of a trial is its lowest validation cost, the mean over the folds {', '.join(map(str, folds))}.",
        "",
        f"## The best: trial {original(best)}, validation cost {best.value:.4f}",
        "",
        "```sh",
        command(replace(config_of(best, study), histograms=Config.histograms)),
        "```",
        "",
    ]
    for border in at_border(best):
        lines += [f"**Warning:** {border}: at the border of its range; a wider one may hold a better value.", ""]
    lines += ["## The best ten", "", "| trial | validation cost | settings |", "|---|---|---|"]
    for trial in complete[:10]:
        found = {name: value for name, value in trial.params.items() if not name.startswith("use_")}
        settings = ", ".join(f"{name} {value if name == 'norm' else f'{value:.3g}'}" for name, value in found.items())
        lines.append(f"| {original(trial)} | {trial.value:.4f} | {settings} |")
    if failed:
        lines += ["", "## Failed trials", "", "| trial | reason |", "|---|---|"]
        for trial in done:
            if trial.state == TrialState.FAIL:
                lines.append(f"| {original(trial)} | {trial.user_attrs.get('reason', 'it lost two workers')} |")
    lines.append("")
    figures = {"history": plots.plot_optimization_history}
    if len(complete) > 3:
        figures |= {"importances": plots.plot_param_importances, "slices": plots.plot_slice}
    for name, plot in figures.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's plots say so where trials are few
            axes = np.atleast_1d(plot(study))
        figure = axes[0].figure
        figure.set_size_inches(max(8, 3.2 * len(axes)), 4.5)
        for axis in axes:
            if name != "importances":
                axis.set_yscale("log")  # else one hopeless trial flattens all others
            if axis.get_xscale() == "log":
                axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())  # over a narrow range they overlap
        with replacing(folder / f"{name}.png") as path:
            figure.savefig(path, dpi=120, format="png", bbox_inches="tight")
        plt.close(figure)
        lines += [f"![{name}]({name}.png)", ""]
    if (folder / "confirmed.md").exists():
        lines.append((folder / "confirmed.md").read_text())
    with replacing(folder / "report.md") as path:
        path.write_text("\n".join(lines) + "\n")
    return folder / "report.md"


# --- the command line ------------------------------------------------------------------------------------------------


def study_folder(options: SearchOptions) -> Path:
    return Path(options.runs_dir) / "search" / (options.report or options.study)


def journal(options: SearchOptions) -> Path:
    return study_folder(options).with_suffix(".log")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(SearchOptions, argv)
    words = {word.split("=")[0].replace("_", "-") for word in argv}
    given = {f.name for f in fields(Config) if flag(f.name) in words}
    be_quiet()
    with errors_in_one_line(data.DataError, RunError), storage_errors(options.storage):
        if options.report:
            study = load_study(options)
        else:
            dataset = data.load(options.config.data, options.config.data_dir)
            warn(dataset)
            options = replace(options, config=replace(resolve(options.config, dataset), histograms=0))
            study = search(options, given)
        if options.confirm:
            confirm(study, options)
        report = write_report(study, options)
        print(report.read_text())
        print(f"written to {report}")


if __name__ == "__main__":
    main()
