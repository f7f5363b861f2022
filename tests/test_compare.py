import csv
import json
import os
import signal
import time
from dataclasses import replace

import pytest
from optuna.trial import TrialState
from test_search import refused, run_search

import compare
import data
import report
import search
from compare import METHODS, SPACE, CompareOptions, candidates, tuned_settings

SETTINGS = ("--data", "digits", "--device", "cpu", "--epochs", "5", "--evaluations", "3")


@pytest.fixture
def inline(monkeypatch):
    """Trials run in this process, one after the other, and nothing is drawn; returns the names of those that ran."""
    ran = []
    monkeypatch.setattr(report, "write_figures", lambda *_: None)

    def supervise(job, count):
        study = job.open_study()
        while job.missing(study) > 0:
            job.enqueue(study)
            waiting = study.get_trials(states=(TrialState.WAITING,))
            ran.extend(trial.user_attrs["name"] for trial in waiting)
            study.optimize(job.run_trial, n_trials=len(waiting), catch=(search.Surplus,))
        return study

    monkeypatch.setattr(search, "supervise", supervise)
    return ran


def run(tmp_path, *arguments):
    compare.main([*SETTINGS, "--runs-dir", str(tmp_path), *map(str, arguments)])


def table(folder, *columns):
    with (folder / "compare" / "results.csv").open(newline="") as file:
        return [tuple(row[column] for column in columns) for row in csv.DictReader(file)]


# --- the methods


def test_every_method_is_tuned_in_its_own_strengths_only():
    for method in METHODS:
        found = candidates(method, 8)
        tuned = tuned_settings(method)
        assert "lr" in tuned
        for settings in found:
            assert settings.keys() == METHODS[method].keys()
            assert {name: settings[name] for name in settings if name not in tuned} == {
                name: METHODS[method][name] for name in settings if name not in tuned
            }
        for name in tuned:
            low, high, *_ = SPACE[name]
            values = sorted(settings[name] for settings in found)
            assert low * 0.94 <= values[0] and values[-1] <= high * 1.06 and len(set(values)) > 5
        assert found == candidates(method, 8)


def test_all_methods_try_all_eighths_of_the_learning_rates():
    low, high, _ = SPACE["lr"]
    for method in METHODS:
        for part, lr in enumerate(sorted(settings["lr"] for settings in candidates(method, 8))):
            bounds = [low * (high / low) ** ((part + end) / 8) for end in (0, 1)]
            assert bounds[0] * 0.95 <= lr <= bounds[1] * 1.05, "rounded to two digits"


def test_tuning_keeps_the_better_half(inline, tmp_path, capsys):
    run(tmp_path, "--tune", 4, "--methods", "dropout")
    with (tmp_path / "compare" / "tuned.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "dropout"]
    columns = [f"val_error_fold_{fold}" for fold in (0, 1, 2)]
    errors = [[float(row[column]) for column in columns if row[column]] for row in rows]
    assert sorted(map(len, errors)) == [1, 1, 2, 3]
    cut = sorted(errors)[1][0]
    assert all((len(one) > 1) == (one[0] <= cut) for one in errors)
    (chosen,) = [row for row in rows if row["chosen"] == "1"]
    assert len(errors[rows.index(chosen)]) == 3
    assert f'"dropout": {{"lr": {chosen["lr"]}, "dropout": {chosen["dropout"]}}}' in capsys.readouterr().out
    assert {json.loads(path.read_text())["fold"] for path in tmp_path.glob("compare/runs/*/result.json")} == {0, 1, 2}
    assert not [path for path in tmp_path.glob("compare/runs/*/metrics.csv") if "test" in path.read_text()]


# --- the runs


def test_methods_are_paired_and_none_is_run_twice(inline, tmp_path):
    run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    configs = [json.loads(path.read_text()) for path in tmp_path.glob("compare/runs/*/config.json")]
    assert sorted((config["fold"], config["seed"], config["dropout"]) for config in configs) == [
        (fold, 0, dropout) for fold in (3, 4) for dropout in (0.0, METHODS["dropout"]["dropout"])
    ]
    differing = {name for config in configs for name in config if config[name] != configs[0][name]}
    assert differing <= {"fold", *METHODS["dropout"], "lr"}
    first = table(tmp_path, "method", "fold", "test_error")
    assert [row[:2] for row in first] == [("baseline", "3"), ("baseline", "4"), ("dropout", "3"), ("dropout", "4")]
    assert len(inline) == 4
    run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    assert len(inline) == 4 and table(tmp_path, "method", "fold", "test_error") == first
    run(tmp_path, "--folds", "3,4,5", "--methods", "dropout,L2")
    assert len(inline) == 9 and set(first) < set(table(tmp_path, "method", "fold", "test_error"))


def test_another_strength_is_another_run(inline, tmp_path, monkeypatch):
    run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    monkeypatch.setitem(METHODS, "dropout", {"lr": 1e-2, "dropout": 0.1})
    run(tmp_path, "--folds", "3-4", "--methods", "dropout")
    assert len(inline) == 6
    assert {row[0].endswith("--lr 0.01 --dropout 0.1") for row in table(tmp_path, "settings")[2:]} == {True}


def test_two_machines_that_queue_the_same_run_train_it_once(inline, tmp_path):
    options = CompareOptions(replace(CompareOptions().config, data="digits", epochs=2), runs_dir=str(tmp_path))
    runs = [compare.plan("dropout", METHODS["dropout"], 3, options.config)]
    study = compare.open_study(options)
    compare.enqueue(study, runs, 2)
    waiting = study.trials[0]
    study.enqueue_trial({}, user_attrs=waiting.user_attrs)
    study.optimize(lambda trial: compare.run_trial(trial, tmp_path), n_trials=3, catch=(search.Surplus,))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "FAIL"]
    assert len(search.finished(study)) == 1 and compare.missing(study, {runs[0].name}) == 0


def test_test_labels_change_nothing_but_test_errors(inline, tmp_path, monkeypatch):
    """Not one tuned value, and not the order of the methods."""
    seen = {}
    load = data.load
    for kind in ("right", "altered"):

        def altered(*arguments, kind=kind):
            dataset = load(*arguments)
            return dataset if kind == "right" else replace(dataset, test_labels=(dataset.test_labels + 1) % 10)

        monkeypatch.setattr(data, "load", altered)
        place = tmp_path / kind
        run(place, "--tune", 2, "--methods", "L2")
        run(place, "--folds", "3-4", "--methods", "L2,dropout")
        order = [line.split("|")[1] for line in (place / "compare/table.md").read_text().splitlines()[2:5]]
        tuned = (place / "compare/tuned.csv").read_text()
        seen[kind] = tuned, order, table(place, "val_error"), table(place, "test_error")
    assert seen["right"][:3] == seen["altered"][:3]
    assert seen["right"][3] != seen["altered"][3]


# --- workers


def test_a_killed_worker_leaves_the_same_table(inline, tmp_path):
    settings = ("--epochs", 400, "--evaluations", 40, "--folds", "3-4", "--methods", "dropout")
    process = run_search(*settings, cwd=tmp_path, script="compare.py")
    options = CompareOptions(runs_dir=str(tmp_path / "runs"))
    victim = None
    while victim is None and process.poll() is None:
        time.sleep(0.1)
        for trial in compare.open_study(options).get_trials(states=(TrialState.RUNNING,)):
            if (tmp_path / "runs/compare/runs" / trial.user_attrs["name"] / "best.pt").exists():
                victim = trial
    os.kill(victim.user_attrs["worker"][1], signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    study = compare.open_study(options)
    assert study.trials[victim.number].state == TrialState.FAIL and len(search.finished(study)) == 4
    run(tmp_path / "undisturbed", *settings)
    columns = ("method", "fold", "train_loss", "val_error", "test_error", "best_epoch")
    assert table(tmp_path / "runs", *columns) == table(tmp_path / "undisturbed", *columns)


def test_machines_share_nothing_but_the_database(inline, database, tmp_path):
    settings = ("--folds", "3-4", "--methods", "dropout", "--storage", database)
    run(tmp_path / "one", *settings)
    assert len(inline) == 4
    run(tmp_path / "other", *settings)
    assert len(inline) == 4, "trained again"
    for name in ("results.csv", "curves.csv", "histograms.csv", "table.md"):
        assert (tmp_path / "one/compare" / name).read_text() == (tmp_path / "other/compare" / name).read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--folds 2-5", "allowed are 3 to 19"),
        ("--folds 5-3", "allowed are 3 to 19"),
        ("--folds 3,x", "allowed are 3 to 19"),
        ("--folds 7", "give 2 or more"),
        ("--methods baseline,foo", "--methods foo: allowed are baseline"),
        ("--fold 4", "--folds"),
        ("--tune -1", "--tune -1"),
        ("--histograms 0", "--histograms 0"),
        ("--tune 2 --folds 3-4", "--folds 3-4"),
        ("--report --methods L2", "--report"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, *arguments.split(), script=compare)
    assert code == 2 and words in line
