"""The space, a trial, studies, their report and confirmation; what dies is in test_cluster.py as well."""

import json
import re
import signal
import typing
from dataclasses import fields, replace
from functools import partial

import numpy as np
import optuna
import pytest
from helpers import ROOT, contents, cut_off, events, refused
from optuna.trial import FixedTrial, TrialState
from test_cluster import command, said, until

import data
import search
import train
from search import SEARCHABLE, SearchOptions, suggest, trial_cost
from support import cluster
from support.run import alone
from support.space import SPACE
from train import Config

PARAMETERS = {
    "lr": 2e-3, "schedule": "one-cycle", "init": "he", "norm": "layer", "use_l1": True, "l1": 3e-5, "use_l2": True,
    "l2": 4e-4, "use_weight_decay": True, "weight_decay": 0.2, "use_dropout": True, "dropout": 0.3, "use_noise": True,
    "noise": 0.2, "use_geometry": True, "rotate": 11.0, "zoom": 0.12, "shift": 1.5, "shear": 0.1, "elastic": 20.0,
}  # fmt: skip
VALUES = {name: value for name, value in PARAMETERS.items() if not name.startswith("use_")}
OFF = {name: False if name.startswith("use_") else value for name, value in PARAMETERS.items()}


@pytest.fixture
def options(digits, tmp_path) -> SearchOptions:
    return SearchOptions(replace(digits, histograms=0), studies_dir=str(tmp_path), trials=4)


@pytest.fixture
def in_process(monkeypatch):
    """This process is the only worker; what Dask's are for has tests of its own. What is shown beside the progress."""

    def finish(function, jobs, keep, *_):
        for what, folder in jobs:
            folder.mkdir(exist_ok=True)
            found = {"state": "COMPLETE", "result": None, "reason": "", "begun": "", "ended": ""}
            try:
                found["result"] = function(what, folder)
            except optuna.TrialPruned:
                found["state"] = "PRUNED"
            except cluster.Failed as failed:
                found |= {"state": "FAIL", "reason": str(failed)}
            shown.append(keep(what, folder, found))

    shown = []
    monkeypatch.setattr(cluster, "finish", finish)
    return shown


def line(tmp_path, *arguments):
    """A command line of search.py, of its defaults on digits, and `arguments`."""
    return ["--data", "digits", "--device", "cpu", "--studies-dir", str(tmp_path), *map(str, arguments)]


def load(tmp_path, **more):
    return search.open_study(SearchOptions(studies_dir=str(tmp_path), **more))


def results(folder):
    """What the runs in `folder` have returned, by the name of the folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def one_trial(options, parameters, study=None):
    """A trial with these parameters, and the folder of its run."""
    study = study or optuna.create_study()
    study.enqueue_trial(parameters)
    folder = options.folder / f"{len(study.trials)}"
    study.optimize(lambda trial: trial_cost(trial, folder, options), n_trials=1, catch=cluster.Failed)
    return study.trials[-1], folder


# --- the space


def test_what_is_suggested_is_of_the_space_and_reaches_the_run(options, monkeypatch):
    """From the trial's parameters to the Config that train() is called with."""
    seen = []
    over = {"status": "finished", "best": {"loss/val": 1.0, "error/val": 0.1}}
    monkeypatch.setattr(search, "train", lambda config, *_, **__: seen.append(config) or over)
    trial, _ = one_trial(replace(options, search=",".join(SEARCHABLE)), PARAMETERS)
    (config,), kinds = seen, typing.get_type_hints(Config)
    assert trial.params == PARAMETERS
    assert config == replace(options.config, **VALUES)
    for name in VALUES:
        found = trial.distributions[name]
        if isinstance(found, optuna.distributions.CategoricalDistribution):
            assert found.choices == typing.get_args(kinds[name])
        else:
            assert (found.low, found.high, found.log) == SPACE[name]


def test_what_is_not_searched_stays_as_it_was_given(options):
    for name in SEARCHABLE:
        config = suggest(FixedTrial(PARAMETERS), options.config, [name])
        changed = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(options.config, f.name)}
        assert changed == (set(search.GEOMETRY) if name == "geometry" else {name})
    assert SearchOptions(search="weight-decay,lr").searched == ["lr", "weight_decay"]


# --- one trial


def test_the_test_set_is_never_read(options, monkeypatch):
    split_tensors = data.split_tensors

    def guarded(dataset, split, *more):
        assert split != "test"
        return split_tensors(dataset, split, *more)

    monkeypatch.setattr(data, "split_tensors", guarded)
    trial, folder = one_trial(options, PARAMETERS)
    assert trial.state == TrialState.COMPLETE
    assert events(folder).Tags()["histograms"] == [] and not (folder / "last.pt").exists()


def test_the_cost_is_the_lowest_of_the_run_on_its_fold(options):
    trial, folder = one_trial(replace(options, config=replace(options.config, fold=2)), PARAMETERS)
    run = json.loads((folder / "result.json").read_text())
    assert (run["fold"], run["seed"]) == (2, 0)
    assert (trial.value, trial.user_attrs["error"]) == (run["best"]["loss/val"], run["best"]["error/val"])
    assert len(trial.intermediate_values) == 6


def test_a_hopeless_trial_is_pruned(options):
    options = replace(options, config=replace(options.config, epochs=80, evaluations=8))
    options.folder.mkdir(parents=True)
    study = search.open_study(options)
    for _ in range(3):
        good, _ = one_trial(options, OFF | {"lr": 1e-2, "norm": "batch"}, study)
        assert good.state == TrialState.COMPLETE
    poor = OFF | {"lr": 3e-4, "norm": "none"}
    hopeless, folder = one_trial(options, poor, study)
    assert hopeless.state == TrialState.PRUNED
    assert 40 <= max(hopeless.intermediate_values) < 80
    assert not (folder / "last.pt").exists() and not (folder / "result.json").exists()
    patient, _ = one_trial(replace(options, prune=False), poor, study)
    assert patient.state == TrialState.COMPLETE


def test_a_trial_that_was_cut_off_goes_on_to_the_cost_of_an_undisturbed_one(options):
    undisturbed, _ = one_trial(options, PARAMETERS)
    looks = sorted(undisturbed.intermediate_values)
    run = partial(train.train, splits=("train", "val"), quiet=True)
    folder = cut_off(
        run, suggest(FixedTrial(PARAMETERS), options.config, options.searched), options.folder / "c", looks[3]
    )
    study = optuna.create_study()
    study.enqueue_trial(PARAMETERS)
    study.optimize(lambda trial: trial_cost(trial, folder, options), n_trials=1)
    assert study.trials[0].value == undisturbed.value
    assert sorted(study.trials[0].intermediate_values) == looks[3:], "it began again"


# --- studies


def test_a_killed_search_goes_on_with_the_trials_that_it_had_begun(tmp_path):
    """With processes of Dask's: each trial once, under its number, to the cost of an undisturbed run."""
    words = line(tmp_path, "--epochs", 300, "--evaluations", 40, "--trials", 4, "--no-prune")
    process = command(ROOT / "search.py", *words)
    runs = tmp_path / "search/search/runs"
    until(lambda: len(list(runs.glob("*/last.pt"))) == 2, "two runs")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = {path.name for path in runs.iterdir()}
    _, err = command(ROOT / "search.py", *words).communicate(timeout=300)
    assert said(err) == []
    trials = load(tmp_path).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert len(list(runs.iterdir())) == 4 and begun <= {path.name for path in runs.iterdir()}
    given = Config(data="digits", device="cpu", epochs=300, evaluations=40, histograms=0)
    for trial in trials:
        config = suggest(FixedTrial(trial.params), given, SearchOptions().searched)
        again = train.train(config, tmp_path / f"again-{trial.number}", ("train", "val"), quiet=True)
        assert again["best"]["loss/val"] == trial.value


def test_a_study_of_the_same_name_with_other_settings_is_refused(in_process, tmp_path, capfd):
    place = line(tmp_path, "--trials", 1)
    search.main([*place, "--epochs", "5", "--search", "lr,norm"])
    before = contents(tmp_path / "search/search/runs")
    for other, words in [
        ("--epochs 6 --search lr,norm", "epochs 5, not 6"),
        ("--epochs 5", "search lr,norm, not lr,norm,l1,l2,dropout"),
        ("--epochs 5 --search lr,norm --no-prune", "prune True, not False"),
    ]:
        code, message = refused(capfd, search.main, *place, *other.split())
        assert code == 1 and words in message
    same = [*place, "--epochs", "5", "--search", "norm,lr"]
    with alone(tmp_path / "search/search"):
        code, message = refused(capfd, search.main, *same)
    assert code == 1 and "another process is at work here" in message
    search.main(same)
    assert contents(tmp_path / "search/search/runs") == before and len(load(tmp_path).trials) == 1


def test_other_data_are_refused_and_after_the_journal_is_lost_begun_anew(in_process, tmp_path, capfd, monkeypatch):
    words, folder = line(tmp_path, "--epochs", 4, "--search", "lr", "--trials", 2), tmp_path / "search/search"
    search.main(words)
    old, costs = set(results(folder / "runs")), [trial.value for trial in load(tmp_path).trials]
    digits = data.load("digits")
    others = replace(digits, train_images=digits.train_images[::-1].copy())
    monkeypatch.setattr(data, "load", lambda *_: others)
    code, message = refused(capfd, search.main, *words)
    assert code == 1 and "other data" in message
    (folder / "journal.log").write_text("12:00 another program\n12:01 it ended\n")
    code, message = refused(capfd, search.main, *words)
    assert code == 1 and "journal.log: damaged or out of reach" in message
    (folder / "journal.log").unlink()
    search.main(words)
    assert len(set(results(folder / "runs")) - old) == 2, "folders of other data were taken for these"
    assert [trial.value for trial in load(tmp_path).trials] != costs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--study ../x", "--study ../x: allowed are letters, digits"),
        ("--fold 4", "(0, 1, 2)"),
        ("--search lr,momentum", "--search momentum: allowed are lr, schedule"),
        ("--norm batch", "--norm batch: norm is to be searched; drop one of the two"),
        ("--shear 0.1 --search geometry", "--shear 0.1: geometry is to be searched"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, message = refused(capfd, search.main, *arguments.split())
    assert code == 2 and words in message


# --- report and confirmation


def test_a_search_that_could_not_run_a_trial_fails_with_the_reason(in_process, tmp_path, capfd):
    fixed = ("--lr", 1e10, "--epochs", 9, "--search", "l1", "--trials", 2, "--confirm", 2)
    code, message = refused(capfd, search.main, *line(tmp_path, *fixed))
    assert code == 1
    assert re.search(r"2 trials: 0 complete, 0 pruned, 2 failed, the last one: diverged after \d+", message)
    assert [trial.state for trial in load(tmp_path).trials] == [TrialState.FAIL] * 2, "divergence is final"


def test_a_whole_search_its_report_and_confirmation(in_process, tmp_path, capsys):
    """The report's command is the best trial, and the confirmation saw other folds only."""
    search.main(line(tmp_path, "--epochs", 10, "--trials", 4, "--confirm", 6))
    folder = tmp_path / "search/search"
    screen, text = capsys.readouterr().out, (folder / "report.md").read_text()
    best = min(load(tmp_path).trials, key=lambda trial: trial.value)
    assert in_process[3] == f"best cost {best.value:.4f}"
    assert f"validation cost {best.value:.4f}, error {best.user_attrs['error']:.2%}\n" in text
    assert text.strip() in screen, "the screen shows what the file says"
    assert "](param_importances.png)" in text and (folder / "param_importances.png").exists()

    shown = next(row for row in text.splitlines() if row.startswith("python train.py"))
    config = replace(train.parse(train.TrainOptions, shown.split()[2:]).config, device="cpu")
    assert train.train(config, tmp_path / "again", quiet=True)["best"]["loss/val"] == best.value

    runs = results(folder / "confirm/runs")
    kinds = [[run for name, run in runs.items() if name.startswith(kind)] for kind in ("the-settings", "trial")]
    assert [sorted((run["fold"], run["seed"]) for run in kind) for kind in kinds] == [[(k, k) for k in range(3, 9)]] * 2
    name = next(name for name, run in runs.items() if name.startswith("trial") and run["fold"] == 3)
    confirmed = train.read_config(folder / "confirm/runs" / name)
    assert confirmed == replace(config, fold=3, seed=3, histograms=0)
    given, trial = (
        next(row for row in text.splitlines() if row.startswith(start)) for start in ("| the set", "| trial")
    )
    errors = [[100 * run["best"]["error/test"] for run in kind] for kind in kinds]
    assert f" {np.mean(errors[0]):.2f} ± " in given and f" {np.mean(errors[1]):.2f} ± " in trial
    assert re.search(r"/6 .* (better|worse|equal|undecided)", trial) and "on folds 3 to 8, on which" in text

    trained = contents(folder / "confirm/runs")
    search.main(line(tmp_path, "--epochs", 10, "--trials", 4, "--confirm", 2))
    assert contents(folder / "confirm/runs") == trained, "it trained again"
    assert "undecided: too few folds" in (folder / "report.md").read_text()
    assert "last.pt" not in {path.name for path in trained}


def test_what_is_said_of_the_trials(options):
    """Their numbers, the last reason of a failure, the best one, and a warning of a value at its border."""
    options = replace(options, search="lr,norm")
    options.folder.mkdir(parents=True)
    study = search.open_study(options)

    def add(lr, value=None, state=None, **attributes):
        study.enqueue_trial({"lr": lr, "norm": "batch"})
        trial = study.ask()
        suggest(trial, options.config, options.searched)
        for name, text in attributes.items():
            trial.set_user_attr(name, text)
        study.tell(trial, value, state)

    add(0.01, 0.3, error=0.25)
    add(0.029, 0.1, error=0.2)
    add(0.001, state=TrialState.FAIL, reason="diverged after 7 updates")
    add(0.001, state=TrialState.PRUNED)
    study.ask()
    text = "\n".join(search.describe(study, options))
    assert "4 trials: 2 complete, 1 pruned, 1 failed, the last one: diverged after 7 updates." in text
    assert "## The best: trial 1, validation cost 0.1000, error 20.00%" in text and "its run, on fold 0" in text
    assert "--lr 0.029 --norm batch" in text
    assert "**Warning:** lr 0.029 is at the border of its range, 0.0003 to 0.03" in text
