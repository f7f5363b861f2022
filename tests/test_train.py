"""train.py: what a run computes and writes, how it goes on, and that nothing of another run passes for it."""

import functools
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import EVERYTHING, assert_equal_runs, contents, cut_off, events, forked, points, refused, same, weights
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from torch import nn

import data
import train as train_module
from model import store_grad
from observe import EVENT_FILES, evaluation_epochs, layers
from regularizers import l1_penalty, l2_penalty, penalized_weights
from support import shell
from support.run import RunError, command, read_rows
from train import Config, TrainOptions, build_model, build_optimizer, evaluate, main, objective, train, trained_model

DIGITS = Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3)  # as the fixture `digits`
ROOT = Path(data.__file__).parent
quietly = functools.partial(train, quiet=True)


def run_main(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def split_of(config, split):
    return data.split_tensors(data.load("digits"), split, config.fold, torch.device("cpu"), config.fraction)


def untrained(config):
    torch.manual_seed(train_module.random_streams(config.seed, torch.device("cpu"))[0])
    return build_model(config, data.load("digits"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run, with the settings of the fixture `digits`, that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    quietly(DIGITS, folder)
    return folder


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """The folder of a run that was cut off."""
    return cut_off(quietly, DIGITS, tmp_path_factory.mktemp("cut") / "run", 7)


@pytest.fixture(scope="module")
def weights_after(tmp_path_factory):
    """Weights after a short run with these settings."""

    @functools.cache
    def after(**settings):
        folder = tmp_path_factory.mktemp("short")
        quietly(replace(DIGITS, epochs=4, evaluations=1, histograms=0, **{"lr": 2e-3} | settings), folder)
        return weights(folder)

    return after


# --- what a run computes


def test_same_seed_same_weights_and_looking_changes_nothing(digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    quietly(config, tmp_path / "without test", splits=("train", "val"))
    for change in ({}, {"seed": 1}, {"evaluations": 1, "histograms": 0}, {"evaluations": 20, "histograms": 20}):
        quietly(replace(config, **change), tmp_path / str(change))
        assert same(weights(tmp_path / str(change)), weights(tmp_path / "without test")) == ("seed" not in change)


@pytest.mark.parametrize("name", [*EVERYTHING, "optimizer", "momentum", "seed", "fold"])
def test_every_setting_reaches_the_run(name, weights_after):
    value = (EVERYTHING | {"optimizer": "sgd", "momentum": 0.9, "seed": 1, "fold": 1})[name]
    others = {"optimizer": "sgd"} if name == "momentum" else {}
    assert not same(weights_after(**others), weights_after(**others, **{name: value}))


def test_methods_begin_with_the_same_weights(digits):
    plain = untrained(digits).state_dict()
    for method in ({"dropout": 0.5}, {"norm": "batch"}, {"l2": 1e-3}, {"rotate": 10.0}):
        other = untrained(replace(digits, **method)).state_dict()
        assert all(torch.equal(values, other[name]) for name, values in plain.items())


def test_objective_is_cross_entropy_and_penalties(digits):
    config = replace(digits, l1=0.01, l2=0.1)
    model, images, labels = untrained(config), torch.rand(5, 8, 8), torch.arange(5)
    cost = -model(images).softmax(1)[range(5), labels].log().mean()
    expected = cost + 0.01 * l1_penalty(model) + 0.1 * l2_penalty(model)
    assert objective(model, images, labels, config).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(model, images, labels, digits).item() == pytest.approx(cost.item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_what_decays_is_what_l1_and_l2_penalise(optimizer, digits):
    model = untrained(replace(digits, norm="layer"))
    for decay in (0.0, 0.5):  # without --weight-decay, none does
        config = replace(digits, optimizer=optimizer, weight_decay=decay, norm="layer")
        optimized, schedule = build_optimizer(model, config, 72)
        decaying, others = optimized.param_groups
        assert (decaying["weight_decay"], others["weight_decay"]) == (decay, 0)
        assert set(map(id, decaying["params"])) == set(map(id, penalized_weights(model)))
        assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))
        assert schedule.get_last_lr() == [1e-3, 1e-3], "constant"


def test_one_cycle_peaks_at_lr_and_ends_near_zero(digits, tmp_path):
    quietly(replace(digits, schedule="one-cycle", lr=1e-2, epochs=40, evaluations=40, histograms=0), tmp_path)
    rates = [row["lr"] for row in read_rows(tmp_path)]
    assert max(rates) == pytest.approx(1e-2, rel=0.01) and rates.index(max(rates)) in range(10, 15)
    assert rates[-2] < 1e-4 and rates[0] == pytest.approx(1e-2 / 25)


def test_adamw_without_weight_decay_is_adam(digits):
    ours, theirs = untrained(digits), untrained(digits)
    adam = torch.optim.Adam(theirs.parameters(), lr=digits.lr, fused=True)
    for model, optimizer in ((ours, build_optimizer(ours, digits, 20)[0]), (theirs, adam)):
        for _ in range(20):
            objective(model, *split_of(digits, "train"), digits).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert same(ours.state_dict(), theirs.state_dict()) and not same(ours.state_dict(), untrained(digits).state_dict())


@pytest.mark.parametrize("l2", [0.0, 1e-3])
def test_an_independent_implementation_errs_alike(l2, digits, tmp_path):
    """scikit-learn's: its penalty is alpha / 2 * sum w**2 / batch, so alpha = 2 * batch * l2; it begins as Glorot."""
    config = replace(digits, fraction=0.1, epochs=60, batch_size=30, init="glorot", l2=l2)
    (images, labels), (others, truth) = (split_of(config, split) for split in ("train", "test"))
    theirs = MLPClassifier(
        (100, 100, 100), batch_size=30, max_iter=60, n_iter_no_change=60, tol=0.0, alpha=60 * l2, random_state=0
    )
    with pytest.warns(ConvergenceWarning):
        theirs.fit(images.flatten(1), labels)
    error = 1 - theirs.score(others.flatten(1), truth)
    assert quietly(config, tmp_path)["last"]["error/test"] == pytest.approx(error, abs=0.04) and error < 0.15


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l2_under_sgd_is_twice_the_weight_decay_and_under_adam_it_is_not(momentum, weights_after):
    sgd = {"optimizer": "sgd", "momentum": momentum, "lr": 0.1, "batch_size": 24, "norm": "batch"}
    kinds = {"l2": 0.1}, {"weight_decay": 0.2}, {"weight_decay": 0.1}
    l2, decay, half = (weights_after(**sgd, **kind) for kind in kinds)
    assert all(torch.allclose(l2[name], decay[name], atol=1e-5) for name in l2)
    assert not all(torch.allclose(l2[name], half[name], atol=1e-3) for name in l2)
    l2, decay = (weights_after(lr=1e-2, batch_size=6, **kind) for kind in kinds[:2])
    assert not all(torch.allclose(l2[name], decay[name], atol=1e-2) for name in l2)


def test_evaluation_is_in_evaluation_mode_leaves_the_mode_and_draws_nothing(digits):
    model, (images, labels) = untrained(replace(digits, dropout=0.5, norm="batch")), split_of(digits, "val")
    before, drawn = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    scores = evaluate(model, images, labels)
    assert model.training and same(before, model.state_dict()) and torch.equal(drawn, torch.get_rng_state())
    logits = model.eval()(images)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert scores.error == pytest.approx((logits.argmax(1) != labels).double().mean().item())
    assert scores.entropy.shape == labels.shape
    evaluate(model, images, labels)
    assert not model.training


def test_patience_stops_after_evaluations_without_a_lower_validation_cost(digits, tmp_path):
    config = replace(digits, lr=1e-2, epochs=150, evaluations=50, histograms=0)
    steps = quietly(config, tmp_path / "whole")["step"]
    config = replace(config, patience=3)
    stopped = quietly(config, tmp_path / "stopped")
    assert stopped["status"] == "finished" and stopped["step"] == stopped["last"]["step"] < steps
    full, costs = ([row["loss/val"] for row in read_rows(tmp_path / name)] for name in ("whole", "stopped"))
    assert costs == full[: len(costs)] and costs.index(min(costs)) == len(costs) - 1 - 3
    quietly(config, cut_off(quietly, config, tmp_path / "cut", stopped["last"]["epoch"] - 1))  # while it waits
    assert_equal_runs(tmp_path / "cut", tmp_path / "stopped")


def test_threads_and_precision_are_the_run_s_own(digits, tmp_path):
    seen = []
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("high")
    machine = lambda *_: seen.append((torch.get_num_threads(), torch.get_float32_matmul_precision()))  # noqa: E731
    try:
        quietly(replace(digits, threads=2, epochs=1), tmp_path, on_evaluation=machine)
        machine()
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    assert seen == [(2, "highest")] * 2 + [(3, "high")], "afterwards they are the caller's again"


def test_held_out_images_train_nothing_and_test_images_choose_nothing(digits, tmp_path, monkeypatch):
    config, cut = replace(digits, epochs=100, lr=1e-2, evaluations=20, histograms=0), data.split_tensors
    results = {"": quietly(config, tmp_path / "honest")}
    for wrong in ("val", "test"):

        def split_tensors(dataset, split, *more, wrong=wrong):
            images, labels = cut(dataset, split, *more)
            return images, (labels + 1) % 10 if split == wrong else labels

        monkeypatch.setattr(data, "split_tensors", split_tensors)
        results[wrong] = quietly(config, tmp_path / wrong)
        assert results[wrong]["last"][f"error/{wrong}"] > 0.5 > results[""]["last"][f"error/{wrong}"]
        assert same(weights(tmp_path / "honest"), weights(tmp_path / wrong))
    assert results["test"]["best"]["epoch"] == results[""]["best"]["epoch"] < 100
    assert same(weights(tmp_path / "honest", "best.pt"), weights(tmp_path / "test", "best.pt"))


# --- networks of one's own


def small(config, dataset):
    return nn.Sequential(nn.Flatten(), nn.Linear(dataset.in_features, dataset.classes))


def lazy(config, dataset):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(20), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(10))


def cnn(config, dataset):
    layers = nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, dataset.classes))


@pytest.mark.parametrize(("make", "names"), [(cnn, ["conv1", "linear1"]), (lazy, ["linear1", "linear2"])])
def test_a_model_of_one_s_own_trains_is_observed_is_penalised_and_goes_on(make, names, digits, tmp_path):
    config, run = replace(digits, epochs=60, lr=1e-2), functools.partial(quietly, make_model=make)
    result = run(config, tmp_path / "own")
    assert result["last"]["loss/train"] < 0.5 * read_rows(tmp_path / "own")[0]["loss/train"]
    steps = points(tmp_path / "own")
    assert all(len(steps[f"{tag}/{name}"]) >= 3 for name in names for tag in ("weights", "weight_rms", "gradient_rms"))
    run(replace(config, l2=1e-2), tmp_path / "penalised")
    for name in ("1.weight", f"{6 if make is cnn else 4}.weight"):
        plain, penalised = (weights(tmp_path / kind)[name] for kind in ("own", "penalised"))
        assert penalised.square().sum() < 0.8 * plain.square().sum()
    run(config, cut_off(run, config, tmp_path / "cut", evaluation_epochs(60, 5)[3]))
    assert_equal_runs(tmp_path / "cut", tmp_path / "own")


def test_a_model_may_change_its_input(digits, tmp_path):
    for place in ("out of place", "in place"):
        first = nn.SiLU(inplace=place == "in place")
        quietly(digits, tmp_path / place, make_model=lambda *_, first=first: nn.Sequential(first, *small(*_)))
    assert_equal_runs(tmp_path / "in place", tmp_path / "out of place")


# --- what a run writes


def test_the_folder_of_a_run(digits, tmp_path):
    config, folder = replace(digits, l2=1e-3, hidden=(50, 20)), tmp_path / "my-run"
    result = quietly(config, folder)
    events = [path.name for path in folder.glob(EVENT_FILES)]
    files = {".lock", "best.pt", "config.json", "last.pt", "metrics.csv", "result.json", *events}
    assert {path.name for path in folder.iterdir()} == files and len(events) == 1
    network = {name: list(values.shape) for name, values in weights(folder).items()}
    identity = asdict(config) | {"hidden": [50, 20], "data_sha256": data.load("digits").sha256, "network": network}
    assert json.loads((folder / "config.json").read_text()) == identity
    assert all(torch.load(folder / name, weights_only=True)["identity"] == identity for name in ("best.pt", "last.pt"))
    written = json.loads((folder / "result.json").read_text())
    assert written | {"folder": str(folder)} == result | {"identity": identity}
    assert written["data"] == "digits" and written["status"] == "finished" and "torch" in written["versions"]
    assert written["sizes"] == {"train": 72, "val": 1365, "test": 360}
    assert written["parameters"] == 64 * 50 + 50 + 50 * 20 + 20 + 20 * 10 + 10
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == [0, 2, 4, 7, 12, 20] == [row["step"] for row in rows]
    assert written["best"] == min(rows, key=lambda row: row["loss/val"]) and written["last"] == rows[-1]
    penalty = 1e-3 * sum(w.square().sum().item() for n, w in weights(folder).items() if "weight" in n)
    assert rows[-1]["penalty/l2"] == pytest.approx(penalty)


def test_best_and_last_are_the_weights_that_they_say(digits, tmp_path):
    config = replace(digits, epochs=150, lr=1e-2, evaluations=20, histograms=0)
    result = quietly(config, tmp_path)
    assert result["best"]["epoch"] < 150 and result["best"]["loss/val"] < result["last"]["loss/val"], "over-fitted"
    for moment in ("best", "last"):
        model = trained_model(config, data.load("digits"), tmp_path / f"{moment}.pt")
        cost = evaluate(model, *split_of(digits, "val")).loss
        assert cost == pytest.approx(result[moment]["loss/val"], abs=1e-6)


@pytest.fixture(scope="module")
def every_tag(tmp_path_factory):
    """The folder of a run that writes all tags that there are."""
    folder = tmp_path_factory.mktemp("every") / "run"
    quietly(replace(DIGITS, epochs=50, evaluations=10, histograms=5, noise=0.1), folder)
    return folder


def test_the_event_file(every_tag):
    """Every tag, each as often as it should be there, and no other; one run, one folder; no cards of single dots."""
    tags, steps = events(every_tag).Tags(), points(every_tag)
    linear = [f"linear{number}" for number in (1, 2, 3, 4)]
    curves = {f"{group}/{split}" for group in ("loss", "error", "mean_entropy") for split in data.SPLITS}
    curves |= {"mean_entropy/untrained", "mean_entropy/uniform", "penalty/l1", "penalty/l2", "lr"}
    curves |= {f"weight_rms/{layer}" for layer in linear}
    gradients = {f"gradient_rms/{layer}" for layer in linear}
    assert set(tags["scalars"]) == curves | gradients
    (gradient,) = {tag.split("/")[0] for tag in tags["histograms"] if "input_gradient" in tag}
    histograms = {f"{group}/{layer}" for group in ("weights", gradient) for layer in linear}
    histograms |= {f"entropy/{split}" for split in data.SPLITS}
    assert set(tags["histograms"]) == histograms | {"entropy/untrained"} and tags["images"] == ["images/augmented"]
    assert steps["entropy/untrained"] == [0]
    assert all(steps[tag] == steps["loss/val"] for tag in curves) and len(steps["loss/val"]) == 11
    assert all(steps[tag] == steps["loss/val"][:-1] for tag in gradients), "no update follows the last evaluation"
    assert all(len(steps[tag]) == (5 if "gradient" in tag else 6) for tag in histograms)
    assert all(set(steps[tag]) <= set(steps["loss/val"]) for tag in histograms)
    assert [path for path in every_tag.parent.rglob("events.*") if path.parent != every_tag] == []


def test_curves_and_files_agree(every_tag):
    reader, rows = events(every_tag), read_rows(every_tag)
    for tag in rows[0].keys() - {"epoch", "step", "seconds"}:
        assert [event.value for event in reader.Scalars(tag)] == pytest.approx([row[tag] for row in rows])


def test_values_at_step_k_belong_to_the_weights_after_k_updates(digits, whole):
    reader, first = events(whole), untrained(digits)
    for number, matrix in ((-1, weights(whole)["linears.0.weight"]), (0, first.linears[0].weight)):
        histogram = reader.Histograms("weights/linear1")[number].histogram_value
        assert histogram.num == 6400 and histogram.sum == pytest.approx(matrix.double().sum().item(), rel=1e-4)
        rms = reader.Scalars("weight_rms/linear1")[number].value
        assert rms == pytest.approx(matrix.square().mean().sqrt().item(), rel=1e-5)
    expected = evaluate(first, *split_of(digits, "val")).entropy  # the reference of all later ones
    for tag, value in (("untrained", expected.mean().item()), ("uniform", math.log(10))):
        assert [event.value for event in reader.Scalars(f"mean_entropy/{tag}")] == pytest.approx([value] * 6)
    histogram = reader.Histograms("entropy/untrained")[0].histogram_value
    assert histogram.sum == pytest.approx(expected.double().sum().item(), rel=1e-5)


def test_input_gradients_are_those_of_the_training_step(digits, tmp_path):
    """The whole fold is one batch here, so the gradient of the first step is that of the untrained model."""
    config, inputs = replace(digits, epochs=1, batch_size=72, l2=1e-3), []
    quietly(config, tmp_path)
    model = untrained(config)
    for layer in layers(model).values():
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(store_grad(arguments[0].clone())))
        layer.register_forward_pre_hook(lambda _, arguments: inputs[-1])
    objective(model, *split_of(config, "train"), config).backward()
    assert len(inputs) == 4
    for number, x in enumerate(inputs, start=1):
        written = events(tmp_path).Scalars(f"gradient_rms/linear{number}")[0].value
        assert written == pytest.approx(x.grad.double().square().mean().sqrt().item(), rel=1e-4)


# --- begin, go on, or only read


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(optimizer, digits, tmp_path):
    config = replace(digits, **EVERYTHING, optimizer=optimizer, momentum=0.9 * (optimizer == "sgd"))
    quietly(config, tmp_path / "whole")
    for epoch in (0, 2, 7, 20):
        folder = cut_off(quietly, config, tmp_path / str(epoch), epoch)
        assert not (folder / "result.json").exists()
        torch.rand(3)  # whatever others drew in between
        quietly(config, folder)
        assert_equal_runs(folder, tmp_path / "whole")


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    """kill -9 at random moments, again and again, until the run has come to its end."""
    config = replace(DIGITS, epochs=300, evaluations=60, histograms=20, dropout=0.2, noise=0.1)
    quietly(config, tmp_path / "whole")
    delay, killed = random.Random(0), tmp_path / "killed"

    def modified():
        return (killed / "last.pt").stat().st_mtime_ns if (killed / "last.pt").exists() else 0

    for attempt in range(4):
        saved, process = modified(), forked(quietly, config, killed)
        while process.is_alive() and modified() == saved:
            time.sleep(0.002)
        time.sleep(delay.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL or attempt > 1, "the run was over before it was killed"
    quietly(config, killed)
    assert_equal_runs(killed, tmp_path / "whole")
    assert not list(killed.glob(".*.tmp"))


def press_at(epoch, press):
    return lambda row, best: press() if row["epoch"] == epoch else None


@pytest.mark.skipif(sys.platform == "win32", reason="there os.kill ends a process, whatever the signal")
@pytest.mark.parametrize(("epoch", "number"), [(0, "SIGINT"), (4, "SIGINT"), (4, "SIGTERM"), (20, "SIGINT")])
def test_ctrl_c_and_sigterm_save_and_say_how_to_go_on(epoch, number, digits, whole, tmp_path):
    cut, press = tmp_path / "c u t", press_at(epoch, lambda: os.kill(os.getpid(), getattr(signal, number)))
    if epoch < 20:
        with pytest.raises(KeyboardInterrupt, match=re.escape(f"--resume '{cut}'")):
            quietly(digits, cut, on_evaluation=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert (cut / "last.pt").exists() and not (cut / "result.json").exists()
        run_main("--resume", cut)
    else:  # nothing is left to interrupt
        quietly(digits, cut, on_evaluation=press)
    assert_equal_runs(cut, whole)


def test_a_worker_s_thread_saves_when_it_is_to_stop(digits, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(shell, "STOP", threading.Event())
    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        pool.submit(quietly, digits, tmp_path, on_evaluation=press_at(4, shell.STOP.set)).result()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["progress"]["epoch"] == 5
    quietly(digits, tmp_path)
    assert_equal_runs(tmp_path, whole)


def test_a_finished_run_is_only_read(digits, whole):
    before, result = contents(whole), quietly(digits, whole)
    assert result["status"] == "finished" and result["last"] == read_rows(whole)[-1]
    assert contents(whole) == before


def test_a_diverged_run_stops_and_keeps_its_files(digits, tmp_path, capfd):
    result = quietly(replace(digits, lr=1e10, epochs=500, evaluations=500), tmp_path)
    assert result["status"] == "diverged" and 0 < result["step"] <= 10
    assert result["last"]["epoch"] < result["step"] and math.isfinite(result["last"]["loss/train"])
    assert (tmp_path / "metrics.csv").exists() and all(p.isfinite().all() for p in weights(tmp_path).values())
    with pytest.raises(SystemExit) as stop:
        main(["--resume", str(tmp_path)])
    assert stop.value.code == 1 and "try a lower --lr" in capfd.readouterr().out


# --- nothing of another run passes for this one, and what is damaged is one line


@pytest.mark.parametrize("file", ["last.pt", "best.pt", "result.json"])
def test_a_file_of_another_run_is_refused(file, digits, cut_run, tmp_path, capfd):
    for name, value in {"seed": 1, "lr": 0.01, "fold": 1, "optimizer": "sgd"}.items():
        quietly(replace(digits, **{name: value}), tmp_path / name)
        run = shutil.copytree(cut_run, tmp_path / f"run {name}")
        shutil.copy(tmp_path / name / file, run)
        before, line = contents(run), f"{run / file}: is of a run with {name} {value}, not {getattr(digits, name)}"
        if file == "best.pt":  # who goes on does not read it
            with pytest.raises(RunError, match=re.escape(line)):
                trained_model(digits, data.load("digits"), run / file)
        else:
            code, found = refused(capfd, main, "--resume", run)
            assert code == 1 and line in found, found
        assert contents(run) == before


def test_an_edited_config_is_refused(whole, cut_run, tmp_path, capfd):
    for source, file in ((whole, "result.json"), (cut_run, "last.pt")):
        run = shutil.copytree(source, tmp_path / file)
        (run / "config.json").write_text((run / "config.json").read_text().replace('"lr": 0.001', '"lr": 0.002'))
        before, (code, line) = contents(run), refused(capfd, main, "--resume", run)
        assert code == 1 and f"{run / file}: is of a run with lr 0.001, not 0.002" in line, line
        assert contents(run) == before


def test_another_network_in_the_same_folder_is_refused(digits, tmp_path, capfd):
    """One's own run belongs to train(..., make_model=...): no command trains the class's network in its place."""
    own = functools.partial(quietly, make_model=small)
    own(digits, tmp_path / "over")
    for epoch in (0, 7):  # before and after its first checkpoint
        cut_off(own, digits, tmp_path / f"cut at {epoch}", epoch)
    before = contents(tmp_path)
    for run in tmp_path.iterdir():
        with pytest.raises(RunError, match=r"another network; .* make_model") as refusal:
            quietly(digits, run, make_model=lazy)
        code, line = refused(capfd, main, "--resume", run)
        assert code == 1 and "another network; it goes on under its own settings, and one of your own" in line
        assert not any(word in line + str(refusal.value) for word in ("damaged", "delete"))
    with pytest.raises(RunError, match="another network"):
        trained_model(digits, data.load("digits"), tmp_path / "over/best.pt")
    assert contents(tmp_path) == before
    own(digits, tmp_path / "cut at 0")
    assert_equal_runs(tmp_path / "cut at 0", tmp_path / "over")


class Exploit:
    def __reduce__(self):
        return (exec, ("import os; os.environ['EXECUTED'] = 'yes'",))


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "a flipped bit": lambda content: content[:100_000] + bytes([content[100_000] ^ 1]) + content[100_001:],
    "foreign code": lambda content: (torch.save(Exploit(), file := io.BytesIO()), file.getvalue())[1],
}


@pytest.mark.parametrize(
    ("file", "damage"), [*(("last.pt", damage) for damage in DAMAGES), ("config.json", "cut"), ("result.json", "empty")]
)
def test_a_damaged_file_is_one_line_and_stays(file, damage, whole, cut_run, tmp_path, capfd):
    run = shutil.copytree(whole if file == "result.json" else cut_run, tmp_path / "run")
    (run / file).write_bytes(DAMAGES[damage]((run / file).read_bytes()))
    before, (code, line) = contents(run), refused(capfd, main, "--resume", run)
    assert code == 1 and f"{run / file}: damaged" in line and "SHOW_TRACEBACK" not in line, line
    assert contents(run) == before and "EXECUTED" not in os.environ


# --- bad input: one line, exit code 2 for wrong arguments and 1 for anything else


def test_wrong_arguments(capfd):
    for arguments, words in (
        ("--dropout 1.5", "--dropout 1.5: allowed is 0 to 0.99"),
        ("--fold 20", "--fold 20: allowed is 0 to 19"),
        ("--fraction 0.96", "--fraction 0.96: allowed is 0.001 to 0.95"),
        ("--hidden 0", "--hidden 0: allowed is 1 to 10000"),
        ("--norm foo", "invalid choice 'foo' for argument '--norm'. Expected one of ('none', 'batch', 'layer')"),
        ("--data mnist --data-dir x", "exclude each other; give one of them"),
        ("--momentum 0.9", "--momentum 0.9: Adam has its own; drop it, or take --optimizer sgd"),
        ("--resume runs/x --l2 1e-4", "--resume runs/x: has settings of its own; drop the other arguments"),
    ):
        code, line = refused(capfd, main, *arguments.split())
        assert code == 2 and words in line, line


def test_everything_else_that_is_wrong(tmp_path, capfd):
    (tmp_path / "file").touch()
    (tmp_path / "mine/photographs").mkdir(parents=True)
    here = ("--data", "digits", "--epochs", 2, "--device", "cpu", "--runs-dir", tmp_path)
    for arguments, words in (
        ((*here[:-1], tmp_path / "file/runs"), "another --runs-dir"),
        ((*here, "--name", "a/b"), "without slashes"),
        ((*here, "--name", "mine"), "mine: holds other things than a run; choose another --name"),
        ((*here, "--norm", "batch", "--batch-size", 71), "--batch-size 71"),
        (("--resume", tmp_path / "nowhere"), "No such file"),
        (("--resume", tmp_path / "file"), "Not a directory"),
        (("--data-dir", tmp_path), str(tmp_path)),
    ):
        code, line = refused(capfd, main, *arguments)
        assert code == 1 and words in line and "SHOW_TRACEBACK" not in line, line


# --- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system, and only on Linux")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
@pytest.mark.parametrize("left", [0, 200_000])
def test_a_full_disk(left, small_disk, digits, whole, capfd):
    """One line; and after space is made, the same command goes on to the same result."""
    ballast, run = small_disk / "ballast", small_disk / "run"
    arguments = [*shlex.split(command(digits))[2:], "--device", "cpu", "--runs-dir", small_disk, "--name", "run"]

    def fill(left):
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(min(4096, max(0, shutil.disk_usage(small_disk).free - left)))):
                pass

    with pytest.raises(OSError, match="No space left"):
        quietly(digits, run, on_evaluation=press_at(4, lambda: fill(left)))
    fill(0)
    code, line = refused(capfd, main, *arguments)
    assert code == 1 and "No space left" in line and "SHOW_TRACEBACK" not in line, line
    ballast.unlink()
    run_main(*arguments)
    assert_equal_runs(run, whole)
    assert not list(run.glob(".*.tmp"))


# --- the screen


def test_the_screen_of_a_run(tmp_path, capfd):
    arguments = ["--data", "digits", "--epochs", "3", "--dropout", "0.2", "--runs-dir", tmp_path]
    run_main(*arguments, "--l1", "1e-3", "--l2", "1e-4")
    out, err = capfd.readouterr()
    assert err == "", "a progress bar where there is no terminal"
    assert "b = 13.89" in out and "sigma = 8.333" in out  # 1 / (72 * 1e-3) and 1 / sqrt(2 * 72 * 1e-4)
    costs = ("train cost", "val cost", "test cost", "lowest validation cost, epoch 3", "last epoch, 3")
    again = "python train.py --data digits --fold 1 --epochs 3 --dropout 0.2 --l1 0.001 --l2 0.0001"
    assert all(words in out for words in (*costs, f"tensorboard --logdir {tmp_path}", again))
    assert max(map(len, out.splitlines()[:7])) <= 100, "wider than a terminal"
    run_main(*arguments, "--name", "without")
    assert "prior" not in capfd.readouterr().out, "no penalty, no prior"


def test_falling_back_to_digits_is_said_before_and_after(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(data, "fetch_mnist", lambda: (_ for _ in ()).throw(data.DataError("the network is away")))
    run_main("--epochs", 3, "--runs-dir", tmp_path)
    err = capfd.readouterr().err
    assert err.count("NOT MNIST") == 2 and err.count("the network is away") == 2
    assert next(tmp_path.glob("data=digits_epochs=3-*")).is_dir()


def test_a_command_gives_back_its_settings():
    config = Config(dropout=0.25, l1=1e-6, norm="layer", data_dir="a folder/with 'quotes'", fold=3, hidden=(50, 20))
    assert shell.parse(TrainOptions, shlex.split(command(config))[2:]).config == config


def test_importing_does_no_work():
    """No seed, no download, no parsing; and nothing heavy that a plain run can do without."""
    code = (
        "import sys, torch; before = torch.get_rng_state(); sys.argv = ['x', '--nonsense'];"
        "import augment, data, model, observe, regularizers, train, support.run, support.shell;"
        "assert torch.equal(before, torch.get_rng_state());"
        "heavy = {'lightning', 'optuna', 'distributed', 'torchvision', 'datamaestro', 'sklearn', 'matplotlib'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


# --- on real MNIST


def test_a_run_on_mnist_overfits(mnist, tmp_path):
    result = quietly(replace(mnist, evaluations=3), tmp_path)
    assert result["parameters"] == 99_710
    assert result["sizes"] == {"train": 3000, "val": 57_000, "test": 10_000}
    assert result["best"]["epoch"] < 60 and result["best"]["loss/val"] < result["last"]["loss/val"]
    assert result["last"]["error/train"] == 0 and 0.05 < result["last"]["error/test"] < 0.11
