"""The space, a trial, studies, their report and confirmation; what dies and who shares is in test_workers.py."""

import importlib.util
import json
import re
import typing
from dataclasses import fields, replace

import numpy as np
import optuna
import pytest
from helpers import ROOT, contents, events, refused
from optuna.trial import FixedTrial, TrialState, create_trial

import data
import search
import train
from search import SEARCHABLE, SearchOptions, run_trial, suggest
from support import workers
from train import SPACE, Config

PARAMETERS = {
    "lr": 2e-3, "schedule": "one-cycle", "init": "he", "norm": "layer", "use_l1": True, "l1": 3e-5, "use_l2": True,
    "l2": 4e-4, "use_weight_decay": True, "weight_decay": 0.2, "use_dropout": True, "dropout": 0.3, "use_noise": True,
    "noise": 0.2, "use_geometry": True, "rotate": 11.0, "zoom": 0.12, "shift": 1.5, "shear": 0.1, "elastic": 20.0,
}  # fmt: skip
VALUES = {name: value for name, value in PARAMETERS.items() if not name.startswith("use_")}
OFF = {name: False if name.startswith("use_") else value for name, value in PARAMETERS.items()}
EVERYTHING = ",".join(SEARCHABLE)


@pytest.fixture(autouse=True)
def quiet():
    workers.be_quiet()


@pytest.fixture
def options(digits, tmp_path) -> SearchOptions:
    return SearchOptions(replace(digits, histograms=0), studies_dir=str(tmp_path), trials=4)


@pytest.fixture
def in_process(monkeypatch):
    """This process is the only worker; what workers promise as processes has tests of its own."""

    def supervise(job, count, preload, describe):
        storage = workers.open_storage(job.place)
        study = workers._open_study(job.place, job.settings, storage, pruner=job.pruner)
        sampler = job.sampler and job.sampler(job.seed)
        while workers._turn(job, study, storage, "this worker", sampler):
            said.append(describe(study) if describe else "")
        return study

    said = []
    monkeypatch.setattr(workers, "_supervise", supervise)
    return said


def command(*arguments, tmp_path):
    search.main([*map(str, arguments), "--data", "digits", "--device", "cpu", "--studies-dir", str(tmp_path)])


def load(tmp_path, name="search"):
    return workers.load(SearchOptions(study=name, studies_dir=str(tmp_path)).place)


def results(tmp_path, pattern="trial-*"):
    """What the runs of the study in tmp_path have returned, by the name of the folder."""
    paths = sorted((tmp_path / "search/search/runs").glob(f"{pattern}/result.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def one_trial(options, parameters, study=None):
    """A trial with these parameters, and the folder of its run."""
    study = study or optuna.create_study()
    study.enqueue_trial(parameters)
    folder = options.place.folder / f"{len(study.trials)}"

    def objective(trial):
        try:
            return run_trial(trial, folder, options)
        except workers.Failed as failed:
            trial.set_user_attr("reason", str(failed))
            raise

    study.optimize(objective, n_trials=1, catch=workers.Failed)
    return study.trials[-1], folder


# --- the space


def test_every_suggested_value_reaches_the_run(options, monkeypatch):
    """From the trial's parameters to the Config that train() is called with."""
    seen = []
    over = {"status": "finished", "best": {"loss/val": 1.0}}
    monkeypatch.setattr(search, "train", lambda config, *_, **__: seen.append(config) or over)
    options = replace(options, search=EVERYTHING)
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


def test_a_trial_of_every_name_alone(options):
    """What is not searched stays as it was given."""
    for name in SEARCHABLE:
        config = suggest(FixedTrial(PARAMETERS), options.config, [name])
        changed = {f.name for f in fields(Config) if getattr(config, f.name) != getattr(options.config, f.name)}
        assert changed == (set(search.GEOMETRY) if name == "geometry" else {name})


def test_what_is_searched_is_an_option():
    assert SearchOptions().searched == ["lr", "norm", "l1", "l2", "dropout"]
    assert SearchOptions(augment=True).searched == ["lr", "norm", "l1", "l2", "dropout", "noise", "geometry"]
    assert SearchOptions(search="weight-decay,lr").searched == ["lr", "weight_decay"]


def test_what_is_given_and_not_searched_is_fixed(in_process, tmp_path):
    fixed = ("--epochs", 5, "--norm", "batch", "--l1", 0.5, "--search", "lr,dropout")
    command(*fixed, "--trials", 2, "--workers", 1, tmp_path=tmp_path)
    study = load(tmp_path)
    assert study.user_attrs["settings"]["search"] == "lr,dropout" and study.user_attrs["settings"]["norm"] == "batch"
    assert all({"lr", "use_dropout"} <= set(trial.params) <= {"lr", "use_dropout", "dropout"} for trial in study.trials)
    for folder in (tmp_path / "search/search/runs").iterdir():
        config = train.read_config(folder)
        assert (config.norm, config.l1, config.epochs, config.fold, config.seed) == ("batch", 0.5, 5, 0, 0)


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


def test_the_cost_is_the_mean_over_the_search_folds(options):
    trial, folder = one_trial(replace(options, folds_per_trial=3), PARAMETERS)
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("fold-*/result.json"))]
    assert [(run["fold"], run["seed"]) for run in runs] == [(0, 0), (1, 0), (2, 0)]
    assert trial.value == pytest.approx(np.mean([run["best"]["loss/val"] for run in runs]))
    assert len(trial.intermediate_values) == 3 * 6, "two folds reported at one step"


def test_a_trial_is_a_small_run_of_tensorboard(options):
    _, folder = one_trial(options, PARAMETERS)
    tags = events(folder).Tags()
    assert tags["histograms"] == [] and {"loss/val", "error/val"} <= set(tags["scalars"])
    assert (folder / "best.pt").exists() and not (folder / "last.pt").exists()


def test_a_hopeless_trial_is_pruned(options):
    options = replace(options, config=replace(options.config, epochs=80, evaluations=8))
    study = optuna.create_study(pruner=search.make_pruner())
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


def test_a_diverged_run_is_a_failed_trial_with_its_reason(options):
    options = replace(options, search="l1", config=replace(options.config, lr=1e10, epochs=100))
    trial, _ = one_trial(options, {"use_l1": False})
    assert trial.state == TrialState.FAIL and re.fullmatch(r"diverged after \d+ updates", trial.user_attrs["reason"])


def test_an_interrupted_trial_goes_on_to_the_cost_of_an_undisturbed_one(options, monkeypatch):
    options = replace(options, folds_per_trial=2)
    undisturbed, _ = one_trial(options, PARAMETERS)
    folder = options.place.folder / "interrupted"
    begun = []

    def interrupt(trial_report):
        def report(self, value, step):
            begun.append(step)
            if len(begun) == 9:  # in the middle of the second fold
                raise KeyboardInterrupt
            trial_report(self, value, step)

        return report

    monkeypatch.setattr(optuna.Trial, "report", interrupt(optuna.Trial.report))
    study = optuna.create_study()
    for _ in range(2):
        study.enqueue_trial(PARAMETERS)
    with pytest.raises(KeyboardInterrupt):
        study.optimize(lambda trial: run_trial(trial, folder, options), n_trials=1)
    assert (folder / "fold-0/result.json").exists() and (folder / "fold-1/last.pt").exists()
    study.optimize(lambda trial: run_trial(trial, folder, options), n_trials=1)
    assert study.trials[1].value == undisturbed.value
    assert begun[9:] == sorted(undisturbed.intermediate_values)[8:], "it began again"


# --- studies


def test_two_studies_of_one_name_with_other_settings_are_refused(in_process, tmp_path, capfd):
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path, "--workers", 1, "--trials", 1)
    search.main([str(a) for a in (*place, "--epochs", 5, "--search", "lr,norm")])
    before = contents(tmp_path)
    for other, words in [
        (("--epochs", 6, "--search", "lr,norm"), "epochs 5, not 6"),
        (("--epochs", 5), "search lr,norm, not lr,norm,l1,l2,dropout"),
        (("--epochs", 5, "--search", "lr,norm", "--augment"), "search lr,norm, not lr,norm,noise,geometry"),
        (("--epochs", 5, "--search", "lr,norm", "--folds-per-trial", 2), "folds_per_trial 1, not 2"),
        (("--epochs", 5, "--search", "lr,norm", "--no-prune"), "prune True, not False"),
    ]:
        code, line = refused(capfd, search.main, *place, *other)
        assert code == 1 and words in line
    assert contents(tmp_path) == before
    search.main([str(a) for a in (*place, "--epochs", 5, "--search", "norm,lr")])
    assert len(load(tmp_path).trials) == 1


def test_other_data_in_the_same_study_are_refused(in_process, tmp_path, capfd, monkeypatch):
    arguments = ("--epochs", 4, "--search", "lr", "--trials", 1)
    command(*arguments, tmp_path=tmp_path)
    digits = data.load("digits")
    monkeypatch.setattr(data, "load", lambda *_: replace(digits, test_labels=digits.test_labels[::-1].copy()))
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path)
    code, line = refused(capfd, search.main, *arguments, *place)
    assert code == 1 and "data_sha256" in line
    code, line = refused(capfd, search.main, "--report", "search", "--confirm", 2, "--studies-dir", tmp_path)
    assert code == 1 and "its data are others now" in line


def test_nothing_of_a_study_that_was_lost_comes_back_as_new(in_process, tmp_path):
    """Neither with the same settings, nor with others, whose folders have the same numbers."""
    command("--epochs", 4, "--trials", 2, tmp_path=tmp_path)
    old = results(tmp_path)
    for epochs in (4, 6):
        before = contents(tmp_path / "search/search/runs")
        (tmp_path / "search/search/journal.log").unlink()
        command("--epochs", epochs, "--trials", 2, tmp_path=tmp_path)
        for trial in load(tmp_path).trials:
            folder = workers.trial_folder(SearchOptions(studies_dir=str(tmp_path)).place, trial)
            assert folder.name not in old
            found = json.loads((folder / "result.json").read_text())
            assert found["best"]["loss/val"] == trial.value and found["last"]["epoch"] == epochs
            assert train.read_config(folder).lr == trial.params["lr"]
        after = contents(tmp_path / "search/search/runs")
        assert {path: after[path] for path in before} == before, "the old runs were touched"
        old = results(tmp_path)
    assert len(old) == 6


def test_studies_of_similar_names_share_nothing(in_process, tmp_path):
    for name in ("v1", "v1.5", "v1.6"):
        command("--epochs", 3, "--search", "lr", "--trials", 1, "--study", name, tmp_path=tmp_path)
    assert sorted(path.name for path in (tmp_path / "search").iterdir()) == ["v1", "v1.5", "v1.6"]
    assert all(len(load(tmp_path, name).trials) == 1 for name in ("v1", "v1.5", "v1.6"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--trials 0", "--trials 0"),
        ("--workers 0", "--workers 0"),
        ("--folds-per-trial 4", "1 to 3"),
        ("--confirm 18", "0 to 17"),
        ("--confirm 1", "give 2 or more"),
        ("--study a/b", "--study a/b: allowed are letters, digits and - _ . but not . first"),
        ("--study ..", "--study .."),
        ("--study .", "--study ."),
        ("--study=", "--study"),
        ("--report ../x", "--report ../x"),
        ("--fold 4", "(0, 1, 2)"),
        ("--dropout 2", "--dropout 2"),
        ("--search lr,momentum", "--search lr,momentum: allowed are lr, schedule"),
        ("--search=", "--search"),
        ("--norm batch", "--norm batch: norm is to be searched; drop it, or search the rest alone: --search lr,l1,l2,"),
        ("--epochs 9 --lr 0.1 --search lr", "--lr 0.1: lr is to be searched; drop it ("),
        ("--shear 0.1 --augment", "--search lr,norm,l1,l2,dropout,noise without --augment"),
        ("--report search --epochs 9", "--report search: a study has its own settings"),
        ("--runs-dir x", "did you mean --studies-dir?"),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, search.main, *arguments.split())
    assert code == 2 and words in line


def test_a_report_of_nothing(tmp_path, capfd):
    code, line = refused(capfd, search.main, "--report", "nothing", "--studies-dir", tmp_path)
    assert code == 1 and "nothing" in line and not list(tmp_path.iterdir())


def test_a_report_of_another_s_study(tmp_path, capfd):
    workers._open_study(place := SearchOptions(studies_dir=str(tmp_path)).place, {"a": 1}, workers.open_storage(place))
    code, line = refused(capfd, search.main, "--report", "search", "--studies-dir", tmp_path)
    assert code == 1 and "study search: not one of search.py's" in line


def test_a_search_that_could_not_run_a_trial_fails_with_the_reason(in_process, tmp_path, capfd):
    place = ("--data", "digits", "--device", "cpu", "--studies-dir", tmp_path)
    fixed = ("--lr", 1e10, "--epochs", 9, "--search", "l1", "--trials", 2, "--confirm", 2)
    code, line = refused(capfd, search.main, *place, *fixed)
    assert code == 1
    assert re.search(r"none of its 2 trials is complete \(0 pruned, 2 failed, the last one: diverged after \d+", line)


# --- report and confirmation


def test_a_whole_search_with_workers_its_report_and_confirmation(tmp_path, capsys):
    """The report's command is the best trial, and the confirmation saw other folds only."""
    command("--epochs", 10, "--trials", 4, "--workers", 1, "--confirm", 2, tmp_path=tmp_path)
    folder = tmp_path / "search/search"
    screen, text = capsys.readouterr().out, (folder / "report.md").read_text()
    study = load(tmp_path)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 4
    best = min(study.trials, key=lambda trial: trial.value)
    assert f"tensorboard --logdir {folder / 'runs'}" in screen and f"cost {best.value:.4f}" in screen

    line = next(line for line in text.splitlines() if line.startswith("python train.py"))
    assert line in screen
    config = replace(search.parse(train.Options, line.split()[2:]).config, device="cpu")
    again = train.train(config, tmp_path / "again", quiet=True)
    assert again["best"]["loss/val"] == best.value

    for name in ("history", "importances", "slices"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG") and f"]({name}.png)" in text
    runs = results(tmp_path, "confirm-*")
    assert sorted((run["fold"], run["seed"]) for run in runs.values()) == [(3, 3), (3, 3), (4, 4), (4, 4)]
    configs = [train.read_config(folder / "runs" / name) for name in runs if "trial" in name]
    assert [replace(one, histograms=20) for one in configs] == [replace(config, fold=k, seed=k) for k in (3, 4)]
    trained = contents(folder / "runs")
    search.main(["--report", "search", "--confirm", "2", "--studies-dir", str(tmp_path)])
    assert contents(folder / "runs") == trained, "it trained again"
    assert (folder / "report.md").read_text() == text and "last.pt" not in {path.name for path in trained}


def test_the_table_of_the_confirmation(in_process, tmp_path, capsys):
    """Paired by fold, at the lowest validation cost; p from six folds on."""
    command("--epochs", 6, "--trials", 2, "--confirm", 6, tmp_path=tmp_path)
    runs = results(tmp_path, "confirm-*")
    errors = {
        kind: np.array([run["best"]["error/test"] for name, run in runs.items() if name.startswith(f"confirm-{kind}")])
        for kind in ("baseline", "trial")
    }
    assert [len(values) for values in errors.values()] == [6, 6]
    lines = capsys.readouterr().out.splitlines()
    baseline, trial = (next(line for line in lines if re.match(kind, line)) for kind in ("baseline ", r"trial \d "))
    assert (
        f" {100 * errors['baseline'].mean():.2f} ± " in baseline and f" {100 * errors['trial'].mean():.2f} ± " in trial
    )
    difference = 100 * (errors["trial"] - errors["baseline"]).mean()
    assert f" {difference:+.2f} ± " in trial and re.search(r" (better|worse|equal|undecided)", trial)
    assert max(map(len, lines[lines.index(baseline) - 2 : lines.index(trial)])) <= 100
    assert "folds 3 to 8, which the search never saw" in "".join(lines)
    assert in_process[1] == f"best cost {min(trial.value for trial in load(tmp_path).trials):.4f}"


def test_the_report_of_a_study(options, tmp_path, capsys):
    """The best ten of those that count, failures with their reason, and a warning of a value at its border."""
    options = replace(options, search="lr,norm")
    settings = train.asdict(options.config) | {"search": options.search, "folds_per_trial": 2, "prune": True}
    study = workers._open_study(options.place, settings, workers.open_storage(options.place))
    space = {
        "lr": optuna.distributions.FloatDistribution(*SPACE["lr"][:2], log=True),
        "norm": optuna.distributions.CategoricalDistribution(["none", "batch", "layer"]),
    }

    def add(key, lr, value=None, **more):
        params = {"lr": lr, "norm": "batch"}
        state = more.pop("state", TrialState.COMPLETE)
        study.add_trial(
            create_trial(params=params, distributions=space, value=value, state=state, user_attrs={"key": key, **more})
        )

    for number in range(12):
        add(f"key {number}", 0.029 if number == 5 else 0.001 * (number + 1), abs(number - 5) / 10 + 0.1)
    add("key 12", 0.001, 0.01, surplus=True)
    add("key 13", 0.001, state=TrialState.FAIL, reason="diverged after 7 updates")
    add("key 14", 0.001, state=TrialState.FAIL)
    add("key 15", 0.001, state=TrialState.PRUNED)
    search.main(["--report", "search", "--studies-dir", str(tmp_path)])
    text = (options.place.folder / "report.md").read_text()
    assert "14 trials: 12 complete, 1 pruned, 1 failed." in text and "mean over fold 0 and 1" in text
    assert "## The best: trial 5, validation cost 0.1000" in text and "--lr 0.029 --norm batch" in text
    assert [line.split(" | ")[0] for line in text.splitlines() if "norm batch |" in line] == [
        f"| {number}" for number in (5, 4, 6, 3, 7, 2, 8, 1, 9, 0)
    ]
    assert "| 13 | diverged after 7 updates |" in text
    assert "**Warning:** lr 0.029, in 0.0003 to 0.03: at the border" in text
    assert "  13  diverged after 7 updates" in capsys.readouterr().out, "in the terminal it is aligned"


def test_a_best_value_at_the_border_is_warned_of():
    space = {
        "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": optuna.distributions.FloatDistribution(0, 1),
    }
    one, two, three = (
        create_trial(params={"lr": lr, "dropout": dropout}, distributions=space, value=1.0)
        for lr, dropout in ((9.8e-3, 0.5), (1e-3, 0.01), (1e-3, 0.5))
    )
    assert [len(search.at_border(trial)) for trial in (one, two, three)] == [1, 1, 0]
    assert search.at_border(one)[0].startswith("lr 0.0098")
    assert search.at_border(two)[0].startswith("dropout")


def test_the_benchmark_runs(in_process, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark_of_search", ROOT / "benchmarks/search.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    benchmark.main(["--quick"])
    assert "digits, 2 trials of 4 epochs" in capsys.readouterr().out
    assert len(in_process) == 4
