"""The space, a trial, studies, their report and confirmation; what dies is in test_cluster.py as well."""

import json
import re
import signal
import typing
from dataclasses import asdict, fields, replace

import numpy as np
import optuna
import pytest
from helpers import ROOT, contents, events, refused
from optuna.trial import FixedTrial, TrialState, create_trial
from test_cluster import command, said, until

import data
import search
import train
from search import SEARCHABLE, SearchOptions, objective, suggest
from support import cluster
from support.space import SPACE
from train import Config

PARAMETERS = {
    "lr": 2e-3, "schedule": "one-cycle", "init": "he", "norm": "layer", "use_l1": True, "l1": 3e-5, "use_l2": True,
    "l2": 4e-4, "use_weight_decay": True, "weight_decay": 0.2, "use_dropout": True, "dropout": 0.3, "use_noise": True,
    "noise": 0.2, "use_geometry": True, "rotate": 11.0, "zoom": 0.12, "shift": 1.5, "shear": 0.1, "elastic": 20.0,
}  # fmt: skip
VALUES = {name: value for name, value in PARAMETERS.items() if not name.startswith("use_")}
OFF = {name: False if name.startswith("use_") else value for name, value in PARAMETERS.items()}


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


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


def searched(*arguments, tmp_path):
    search.main([*map(str, arguments), "--data", "digits", "--device", "cpu", "--studies-dir", str(tmp_path)])


def load(tmp_path, **more):
    return search.of_study(SearchOptions(report="search", studies_dir=str(tmp_path), **more))[1]


def results(folder):
    """What the runs in `folder` have returned, by the name of the folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}


def one_trial(options, parameters, study=None):
    """A trial with these parameters, and the folder of its run."""
    study = study or optuna.create_study()
    study.enqueue_trial(parameters)
    folder = options.folder / f"{len(study.trials)}"
    study.optimize(lambda trial: objective(trial, folder, options), n_trials=1, catch=cluster.Failed)
    return study.trials[-1], folder


# --- the space


def test_every_suggested_value_reaches_the_run(options, monkeypatch):
    """From the trial's parameters to the Config that train() is called with."""
    seen = []
    over = {"status": "finished", "best": {"loss/val": 1.0, "error/val": 0.1}}
    monkeypatch.setattr(search, "train", lambda config, *_, **__: seen.append(config) or over)
    options = replace(options, search=",".join(SEARCHABLE))
    trial, _ = one_trial(options, PARAMETERS)
    assert trial.params == PARAMETERS
    (config,) = seen
    assert {name: getattr(config, name) for name in VALUES} == VALUES
    assert replace(config, **{name: getattr(options.config, name) for name in VALUES}) == options.config


def test_a_strength_is_asked_for_only_where_it_is_used(options):
    trial = FixedTrial(OFF)
    config = suggest(trial, options.config, SEARCHABLE)
    switches = {name for name in PARAMETERS if name.startswith("use_")}
    assert set(trial.params) == {"lr", "schedule", "init", "norm"} | switches
    assert config == replace(options.config, lr=2e-3, schedule="one-cycle", init="he", norm="layer")


def test_ranges_are_those_of_the_space_and_choices_those_of_the_settings(options):
    trial = FixedTrial(PARAMETERS)
    suggest(trial, options.config, SEARCHABLE)
    kinds = typing.get_type_hints(Config)
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
    assert SearchOptions(augment=True).searched == ["lr", "norm", "l1", "l2", "dropout", "noise", "geometry"]
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
    assert "test" not in (folder / "metrics.csv").read_text()
    assert events(folder).Tags()["histograms"] == [] and not (folder / "last.pt").exists()


def test_the_cost_is_the_mean_over_the_search_folds(options):
    trial, folder = one_trial(replace(options, folds_per_trial=3), PARAMETERS)
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("fold-*/result.json"))]
    assert [(run["fold"], run["seed"]) for run in runs] == [(0, 0), (1, 0), (2, 0)]
    assert trial.value == pytest.approx(np.mean([run["best"]["loss/val"] for run in runs]))
    assert trial.user_attrs["error"] == pytest.approx(np.mean([run["best"]["error/val"] for run in runs]))
    assert len(trial.intermediate_values) == 3 * 6, "two folds reported at one step"


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


def test_an_interrupted_trial_goes_on_to_the_cost_of_an_undisturbed_one(options, monkeypatch):
    options = replace(options, folds_per_trial=2)
    undisturbed, _ = one_trial(options, PARAMETERS)
    folder, begun = options.folder / "interrupted", []
    trial_report = optuna.Trial.report

    def report(self, value, step):
        begun.append(step)
        if len(begun) == 9:  # in the middle of the second fold
            raise KeyboardInterrupt
        trial_report(self, value, step)

    monkeypatch.setattr(optuna.Trial, "report", report)
    study = optuna.create_study()
    for _ in range(2):
        study.enqueue_trial(PARAMETERS)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(lambda trial: objective(trial, folder, options), n_trials=1)
    assert (folder / "fold-0/result.json").exists() and (folder / "fold-1/last.pt").exists()
    study.optimize(lambda trial: objective(trial, folder, options), n_trials=1)
    assert study.trials[1].value == undisturbed.value
    assert begun[9:] == sorted(undisturbed.intermediate_values)[8:], "it began again"


# --- studies


def test_a_killed_search_goes_on_with_the_trials_that_it_had_begun(tmp_path):
    """With processes of Dask's: each trial once, under its number, to the cost of an undisturbed run."""
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path)
    words = (ROOT / "search.py", *place, "--epochs", 300, "--evaluations", 40, "--trials", 4, "--no-prune")
    process = command(*words)
    runs = tmp_path / "search/search/runs"
    until(lambda: len(list(runs.glob("*/last.pt"))) == 2, "two runs")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = {path.name for path in runs.iterdir()}
    _, err = command(*words).communicate(timeout=300)
    assert said(err) == []
    options, study = search.of_study(SearchOptions(report="search", studies_dir=str(tmp_path)))
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    assert len(list(runs.iterdir())) == 4 and begun <= {path.name for path in runs.iterdir()}
    for trial in study.trials:
        config = suggest(FixedTrial(trial.params), options.config, options.searched)
        assert (
            train.train(config, tmp_path / f"again-{trial.number}", ("train", "val"), True)["best"]["loss/val"]
            == trial.value
        )


def test_a_study_in_a_database(in_process, tmp_path):
    storage = ("--storage", f"sqlite:///{tmp_path / 'study.db'}")
    for trials in (1, 2):
        searched("--epochs", 3, "--trials", trials, *storage, tmp_path=tmp_path)
    assert len(load(tmp_path, storage=storage[1]).trials) == 2
    assert not (tmp_path / "search/search/journal.log").exists() and (tmp_path / "search/search/report.md").exists()


def test_a_study_of_the_same_name_with_other_settings_is_refused(in_process, tmp_path, capfd):
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path, "--workers", 1, "--trials", 1)
    search.main([str(word) for word in (*place, "--epochs", 5, "--search", "lr,norm")])
    before = contents(tmp_path / "search/search/runs")
    for other, words in [
        (("--epochs", 6, "--search", "lr,norm"), "epochs 5, not 6"),
        (("--epochs", 5), "search lr,norm, not lr,norm,l1,l2,dropout"),
        (("--epochs", 5, "--search", "lr,norm", "--folds-per-trial", 2), "folds_per_trial 1, not 2"),
        (("--epochs", 5, "--search", "lr,norm", "--no-prune"), "prune True, not False"),
    ]:
        code, line = refused(capfd, search.main, *place, *other)
        assert code == 1 and words in line
    assert contents(tmp_path / "search/search/runs") == before and len(load(tmp_path).trials) == 1
    same = [str(word) for word in (*place, "--epochs", 5, "--search", "norm,lr")]
    with cluster.alone(tmp_path / "search/search"):
        code, line = refused(capfd, search.main, *same)
    assert code == 1 and "another command is at work here" in line
    search.main(same)
    assert len(load(tmp_path).trials) == 1


def test_other_data_are_refused_and_after_the_journal_is_lost_begun_anew(in_process, tmp_path, capfd, monkeypatch):
    arguments = ("--epochs", 4, "--search", "lr", "--trials", 2)
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path)
    searched(*arguments, tmp_path=tmp_path)
    runs = tmp_path / "search/search/runs"
    old, costs = set(results(runs)), [trial.value for trial in load(tmp_path).trials]
    digits = data.load("digits")
    others = replace(digits, train_images=digits.train_images[::-1].copy())
    monkeypatch.setattr(data, "load", lambda *_: others)
    assert others.sha256 != digits.sha256
    code, line = refused(capfd, search.main, *arguments, *place)
    assert code == 1 and "data_sha256" in line
    code, line = refused(capfd, search.main, "--report", "search", "--confirm", 2, "--studies-dir", tmp_path)
    assert code == 1 and "its data are others now" in line
    (tmp_path / "search/search/journal.log").unlink()
    searched(*arguments, tmp_path=tmp_path)
    new = set(results(runs)) - old
    assert len(new) == 2, "folders of other data were taken for these"
    assert [trial.params for trial in load(tmp_path).trials] and [t.value for t in load(tmp_path).trials] != costs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--study a/b", "--study a/b: allowed are letters, digits"),
        ("--study .", "--study ."),
        ("--report ../x", "--report ../x"),
        ("--fold 4", "(0, 1, 2)"),
        ("--confirm 1", "give 2 or more"),
        ("--search lr,momentum", "--search momentum: allowed are lr, schedule"),
        ("--norm batch", "--norm batch: norm is to be searched; drop one of the two"),
        ("--shear 0.1 --augment", "--shear 0.1: geometry is to be searched"),
        ("--report search --epochs 9", "--report search: has settings of its own"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    with pytest.raises(SystemExit) as stop:
        search.main(arguments.split())
    assert stop.value.code == 2 and words in " ".join(re.sub(r"[│╭╮╰╯─\n]", " ", capfd.readouterr().err).split())


def test_reports_of_nothing_of_another_s_study_and_of_a_damaged_one(tmp_path, capfd):
    place = ("--report", "search", "--studies-dir", tmp_path)
    code, line = refused(capfd, search.main, *place)
    assert code == 1 and "study search: there is none" in line and not list(tmp_path.iterdir())
    options = SearchOptions(studies_dir=str(tmp_path))
    options.folder.mkdir(parents=True)
    search.open_study(options).set_user_attr("settings", {"a": 1})
    code, line = refused(capfd, search.main, *place)
    assert code == 1 and "study search: not one of search.py's" in line
    (options.folder / "journal.log").write_text("12:00 another program\n12:01 it ended\n")
    code, line = refused(capfd, search.main, *place)
    assert code == 1 and "journal.log: damaged, or out of reach" in line


def test_a_search_that_could_not_run_a_trial_fails_with_the_reason(in_process, tmp_path, capfd):
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path)
    fixed = ("--lr", 1e10, "--epochs", 9, "--search", "l1", "--trials", 2, "--confirm", 2)
    code, line = refused(capfd, search.main, *place, *fixed)
    assert code == 1 and re.search(r"2 trials: 0 complete, 0 pruned, 2 failed, the last one: diverged after \d+", line)
    assert [trial.state for trial in load(tmp_path).trials] == [TrialState.FAIL] * 2, "divergence is final"


# --- report and confirmation


def test_a_whole_search_its_report_and_confirmation(in_process, tmp_path, capsys):
    """The report's command is the best trial, and the confirmation saw other folds only."""
    searched("--epochs", 10, "--trials", 4, "--confirm", 6, tmp_path=tmp_path)
    folder = tmp_path / "search/search"
    screen, text = capsys.readouterr().out, (folder / "report.md").read_text()
    best = min(load(tmp_path).trials, key=lambda trial: trial.value)
    assert f"tensorboard --logdir {folder / 'runs'}" in screen and f"cost {best.value:.4f}" in screen
    assert in_process[3] == f"best cost {best.value:.4f}" and f" {best.user_attrs['error']:.2%} |" in text
    assert text.split("![")[0].strip() in screen, "the screen shows what the file says"

    line = next(line for line in text.splitlines() if line.startswith("python train.py"))
    config = replace(train.parse(train.TrainOptions, line.split()[2:]).config, device="cpu")
    assert train.train(config, tmp_path / "again", quiet=True)["best"]["loss/val"] == best.value
    for name in ("optimization_history", "param_importances", "slice"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"]({name}.png)" in text

    runs = results(folder / "confirm/runs")
    kinds = [[run for name, run in runs.items() if name.startswith(kind)] for kind in ("the-settings", "trial")]
    assert [sorted((run["fold"], run["seed"]) for run in kind) for kind in kinds] == [[(k, k) for k in range(3, 9)]] * 2
    name = next(name for name, run in runs.items() if name.startswith("trial") and run["fold"] == 3)
    confirmed = train.read_config(folder / "confirm/runs" / name)
    assert confirmed == replace(config, fold=3, seed=3, histograms=0)
    given, trial = (
        next(line for line in text.splitlines() if re.match(kind, line)) for kind in (r"\| the set", r"\| trial \d")
    )
    errors = [[100 * run["best"]["error/test"] for run in kind] for kind in kinds]
    assert f" {np.mean(errors[0]):.2f} ± " in given and f" {np.mean(errors[1]):.2f} ± " in trial
    assert re.search(r"/6 .* (better|worse|equal|undecided)", trial) and "folds 3 to 8, which the search never" in text

    trained = contents(folder / "confirm/runs")
    search.main(["--report", "search", "--confirm", "2", "--studies-dir", str(tmp_path)])
    assert contents(folder / "confirm/runs") == trained, "it trained again"
    assert "undecided: too few folds" in (folder / "report.md").read_text()
    assert "last.pt" not in {path.name for path in trained}


def test_the_report_of_a_study(options, tmp_path, capsys):
    """The best ten, failures with their reason, and a warning of a value at its border."""
    options = replace(options, search="lr,norm")
    options.folder.mkdir(parents=True)
    study = search.open_study(options)
    settings = {"search": options.search, "folds_per_trial": 2, "prune": True}
    study.set_user_attr("settings", asdict(options.config) | settings)
    space = {
        "lr": optuna.distributions.FloatDistribution(*SPACE["lr"][:2], log=True),
        "norm": optuna.distributions.CategoricalDistribution(["none", "batch", "layer"]),
    }

    def add(lr, value=None, state=TrialState.COMPLETE, **attributes):
        params = {"lr": lr, "norm": "batch"}
        trial = create_trial(params=params, distributions=space, value=value, state=state, user_attrs=attributes)
        study.add_trial(trial)

    for number in range(12):
        add(0.029 if number == 5 else 0.001 * (number + 1), abs(number - 5) / 10 + 0.1, error=0.25)
    add(0.001, state=TrialState.FAIL, reason="diverged after 7 updates")
    add(0.001, state=TrialState.PRUNED)
    study.ask()
    search.main(["--report", "search", "--studies-dir", str(tmp_path)])
    text = (options.folder / "report.md").read_text()
    assert "14 trials: 12 complete, 1 pruned, 1 failed." in text and "mean over fold 0 and 1" in text
    assert "## The best: trial 5, validation cost 0.1000" in text and "--lr 0.029 --norm batch" in text
    lines = [line.split("|")[1:3] for line in text.splitlines() if "norm batch" in line and line[0] == "|"]
    assert [int(line[0]) for line in lines] == [5, 4, 6, 3, 7, 2, 8, 1, 9, 0]
    assert "|    12 | diverged after 7 updates |" in text
    assert "**Warning:** lr 0.029 is at the border of its range, 0.0003 to 0.03" in text
