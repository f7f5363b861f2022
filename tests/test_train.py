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
import time
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    EVERYTHING,
    ROOT,
    Cut,
    assert_equal_runs,
    contents,
    cut_at,
    events,
    forked,
    points,
    refused,
    same,
    weights,
)
from torch import nn

import data
import train as train_module
from model import store_grad
from observe import EVENT_FILES, evaluation_epochs, layers
from regularizers import l1_penalty, l2_penalty, penalized_weights
from support.folder import RunError, read_rows
from support.shell import parse
from train import Config, Options, build_model, build_optimizer, command, main, objective, run_name, train

CPU = torch.device("cpu")


def train_quietly(config, folder, **more):
    return train(config, folder, quiet=True, **more)


def splits_of(config):
    dataset = data.load("digits")
    return {split: data.split_tensors(dataset, split, config.fold, CPU, config.fraction) for split in data.SPLITS}


def untrained(config):
    torch.manual_seed(train_module.random_streams(config.seed, CPU)[0])
    return build_model(config, data.load("digits"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run, with the settings of the fixture `digits`, that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train_quietly(Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3), folder)
    return folder


# --- what a run is


def test_same_seed_same_weights(digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    for name, one in (("a", config), ("b", config), ("other", replace(config, seed=1))):
        train_quietly(one, tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "other"))


def test_looking_changes_nothing(digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    train_quietly(replace(config, evaluations=2, histograms=0), tmp_path / "seldom")
    train_quietly(replace(config, evaluations=20, histograms=20), tmp_path / "often")
    train_quietly(replace(config, evaluations=20), tmp_path / "without test", splits=("train", "val"))
    assert same(weights(tmp_path / "seldom"), weights(tmp_path / "often"))
    assert same(weights(tmp_path / "seldom"), weights(tmp_path / "without test"))


@pytest.mark.parametrize("name", [*EVERYTHING, "optimizer", "momentum", "seed", "fold"])
def test_every_setting_reaches_the_run(name, digits, tmp_path):
    value = (EVERYTHING | {"optimizer": "sgd", "momentum": 0.9, "seed": 1, "fold": 1})[name]
    baseline = replace(digits, lr=2e-3, epochs=4, histograms=0)  # so that one-cycle alone makes a difference
    if name == "momentum":
        baseline = replace(baseline, optimizer="sgd")
    train_quietly(baseline, tmp_path / "without")
    train_quietly(replace(baseline, **{name: value}), tmp_path / "with")
    assert not same(weights(tmp_path / "without"), weights(tmp_path / "with"))
    written = json.loads((tmp_path / "with/config.json").read_text())[name]
    assert written == (list(value) if isinstance(value, tuple) else value)


def test_methods_share_initialisation_and_batches(digits):
    """At one fold and seed two methods begin with the same weights and see the same batches."""
    shown = []
    for config in (digits, replace(digits, dropout=0.5, l2=1e-3)):
        _, order, _ = train_module.random_streams(config.seed, CPU)
        batches = data.Batches(*splits_of(config)["train"], 20, order)
        shown.append((untrained(config).state_dict(), list(batches)))
    assert same(shown[0][0], shown[1][0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(shown[0][1], shown[1][1], strict=True))


def test_objective_is_cross_entropy_and_penalties(digits):
    config = replace(digits, l1=0.01, l2=0.1)
    model, images, labels = untrained(config), torch.rand(5, 8, 8), torch.arange(5)
    p = model(images).softmax(1)[range(5), labels]
    expected = -p.log().mean() + 0.01 * l1_penalty(model) + 0.1 * l2_penalty(model)
    assert objective(model, images, labels, config).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(model, images, labels, digits).item() == pytest.approx(-p.log().mean().item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_unregularised_run_has_no_weight_decay(optimizer, digits):
    """And with --weight-decay, what decays is what L1 and L2 penalise."""
    model = untrained(replace(digits, norm="layer"))
    for decay in (0.0, 0.5):
        config = replace(digits, optimizer=optimizer, weight_decay=decay, norm="layer")
        optimized, schedule = build_optimizer(model, config, 72)
        assert [group["weight_decay"] for group in optimized.param_groups] == [decay, 0]
        decaying = optimized.param_groups[0]["params"]
        assert set(map(id, decaying)) == set(map(id, penalized_weights(model)))
        assert sum(len(group["params"]) for group in optimized.param_groups) == len(list(model.parameters()))
        assert schedule.get_last_lr() == [1e-3, 1e-3], "constant"


def test_one_cycle_peaks_at_lr_and_ends_near_zero(digits, tmp_path):
    config = replace(digits, schedule="one-cycle", lr=1e-2, epochs=40, evaluations=40, histograms=0)
    train_quietly(config, tmp_path)
    rates = [row["lr"] for row in read_rows(tmp_path)]
    assert max(rates) == pytest.approx(1e-2, rel=0.01) and rates.index(max(rates)) in range(10, 15)
    assert rates[-2] < 1e-4 and rates[0] == pytest.approx(1e-2 / 25)


def test_adamw_without_weight_decay_is_adam(digits, tmp_path, monkeypatch):
    config = replace(digits, norm="layer", lr=1e-2)
    train_quietly(config, tmp_path / "ours")

    def torch_s_adam(model, config, steps):
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    monkeypatch.setattr(train_module, "build_optimizer", torch_s_adam)
    train_quietly(config, tmp_path / "adam")
    assert same(weights(tmp_path / "ours"), weights(tmp_path / "adam"))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_l2_under_sgd_is_twice_the_weight_decay(momentum, digits, tmp_path):
    config = replace(digits, optimizer="sgd", momentum=momentum, lr=0.05, epochs=40, norm="batch")
    for name, strengths in (("l2", {"l2": 0.01}), ("decay", {"weight_decay": 0.02}), ("half", {"weight_decay": 0.01})):
        train_quietly(replace(config, **strengths), tmp_path / name)
    l2, decay, half = (weights(tmp_path / name) for name in ("l2", "decay", "half"))
    assert all(torch.allclose(l2[name], decay[name], atol=1e-5) for name in l2)
    assert not all(torch.allclose(l2[name], half[name], atol=1e-3) for name in l2)


def test_l2_under_adam_is_no_weight_decay(digits, tmp_path):
    for name, strengths in (("l2", {"l2": 0.01}), ("decay", {"weight_decay": 0.02})):
        train_quietly(replace(digits, lr=1e-2, **strengths), tmp_path / name)
    l2, decay = weights(tmp_path / "l2"), weights(tmp_path / "decay")
    assert not all(torch.allclose(l2[name], decay[name], atol=1e-2) for name in l2)


def test_evaluation_is_in_evaluation_mode_and_leaves_the_mode(digits):
    model = untrained(replace(digits, dropout=0.5, norm="batch"))
    images, labels = splits_of(digits)["val"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = train_module.evaluate(model, images, labels)
    assert model.training and same(before, model.state_dict())
    logits = model.eval()(images)
    assert scores.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert scores.error == pytest.approx((logits.argmax(1) != labels).double().mean().item())
    assert scores.entropy.shape == labels.shape
    train_module.evaluate(model, images, labels)
    assert not model.training


def test_patience_stops_after_evaluations_without_a_lower_validation_cost(digits, tmp_path):
    config = replace(digits, lr=1e-2, epochs=150, evaluations=50, histograms=0)
    whole = train_quietly(config, tmp_path / "whole")
    stopped = train_quietly(replace(config, patience=3), tmp_path / "stopped")
    assert stopped["status"] == "finished" and stopped["step"] == stopped["last"]["step"] < whole["step"]
    costs = [row["loss/val"] for row in read_rows(tmp_path / "stopped")]
    assert costs == [row["loss/val"] for row in read_rows(tmp_path / "whole")][: len(costs)]
    assert costs.index(min(costs)) == len(costs) - 1 - 3
    with pytest.raises(Cut):  # while it waits
        train_quietly(replace(config, patience=3), tmp_path / "cut", on_evaluation=cut_at(stopped["last"]["epoch"] - 1))
    train_quietly(replace(config, patience=3), tmp_path / "cut")
    assert_equal_runs(tmp_path / "cut", tmp_path / "stopped")


@pytest.mark.parametrize("threads", [1, 2])
def test_numbers_do_not_depend_on_the_caller_s_threads(threads, digits, whole, tmp_path):
    """Threads and the precision of matrix products are the run's own; afterwards they are the caller's again."""
    config, seen = replace(digits, threads=threads), set()

    def look(row, best):
        seen.add((torch.get_num_threads(), torch.get_float32_matmul_precision()))

    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("high")
    try:
        train_quietly(config, tmp_path / "run", on_evaluation=look)
        with pytest.raises(Cut):
            train_quietly(config, tmp_path / "cut", on_evaluation=cut_at(0))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (3, "high")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_num_threads(1)
    assert seen == {(threads, "highest")}
    if threads == Config().threads:
        assert same(weights(tmp_path / "run"), weights(whole))


class CNN(nn.Module):
    """A model of one's own: images (N, H, W) in, raw logits (N, classes) out."""

    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(64, classes)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, images):
        x = F.max_pool2d(self.norm(self.conv(images.unsqueeze(1))).relu(), 2)
        return self.classifier(x.flatten(1))


def test_a_model_of_one_s_own_trains_is_observed_and_is_penalised(digits, tmp_path):
    def train_cnn(config, folder, **more):
        return train_quietly(config, folder, make_model=lambda config, dataset: CNN(dataset.classes), **more)

    config = replace(digits, epochs=60, lr=1e-2)
    result = train_cnn(config, tmp_path / "cnn")
    assert result["last"]["loss/train"] < 0.5 * read_rows(tmp_path / "cnn")[0]["loss/train"]
    steps = points(tmp_path / "cnn")
    for layer in ("conv1", "linear1"):
        for tag in ("weights", "input_gradient", "weight_rms", "gradient_rms"):
            assert len(steps[f"{tag}/{layer}"]) >= 3
    train_cnn(replace(config, l2=1e-2), tmp_path / "penalised")
    cnn, penalised = weights(tmp_path / "cnn"), weights(tmp_path / "penalised")
    for name in ("conv.weight", "classifier.weight"):
        assert penalised[name].square().sum() < 0.8 * cnn[name].square().sum()
    with pytest.raises(Cut):
        train_cnn(config, tmp_path / "cut", on_evaluation=cut_at(evaluation_epochs(60, 5)[3]))
    train_cnn(config, tmp_path / "cut")
    assert_equal_runs(tmp_path / "cut", tmp_path / "cnn")


# --- what a run writes


def test_the_folder_of_a_run(digits, tmp_path):
    config, folder = replace(digits, l2=1e-3, hidden=(50, 20)), tmp_path / "my-run"
    result = train_quietly(config, folder)
    assert result["folder"] == str(folder)
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    event_files = {path.name for path in folder.glob(EVENT_FILES)}
    assert files - event_files == {"best.pt", "config.json", "last.pt", "metrics.csv", "result.json"}
    assert len(event_files) == 1 and not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))
    settings = json.loads((folder / "config.json").read_text())
    assert settings.pop("data_sha256") == data.load("digits").sha256
    assert settings == json.loads(json.dumps(asdict(config)))
    written = json.loads((folder / "result.json").read_text())
    assert written == {key: value for key, value in result.items() if key != "folder"}
    assert written["data"] == "digits" and written["status"] == "finished" and written["device"] == "cpu"
    assert written["sizes"] == {"train": 72, "val": 1365, "test": 360}
    assert written["parameters"] == 64 * 50 + 50 + 50 * 20 + 20 + 20 * 10 + 10
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == [0, 2, 4, 7, 12, 20] == [row["step"] for row in rows]
    assert written["best"] == min(rows, key=lambda row: row["loss/val"]) and written["last"] == rows[-1]
    assert {f"{measure}/{split}" for measure in ("loss", "error", "mean_entropy") for split in data.SPLITS} < {*rows[0]}
    penalty = 1e-3 * sum(w.square().sum().item() for n, w in weights(folder).items() if "weight" in n)
    assert rows[-1]["penalty/l2"] == pytest.approx(penalty)
    assert [tuple(w.shape) for n, w in weights(folder).items() if "weight" in n] == [(50, 64), (20, 50), (10, 20)]


def test_best_and_last_are_the_weights_that_they_say(digits, tmp_path):
    """An over-fitted run, whose best validation cost comes long before its end."""
    result = train_quietly(replace(digits, epochs=300, lr=1e-2, evaluations=20), tmp_path)
    assert result["best"]["epoch"] < 300 and result["best"]["loss/val"] < result["last"]["loss/val"]
    for moment in ("best", "last"):
        model = untrained(digits)
        model.load_state_dict(weights(tmp_path, f"{moment}.pt"))
        assert train_module.evaluate(model, *splits_of(digits)["val"]).loss == pytest.approx(
            result[moment]["loss/val"], abs=1e-6
        )


def test_test_labels_choose_nothing(digits, tmp_path, monkeypatch):
    config = replace(digits, epochs=100, lr=1e-2, evaluations=20)
    honest = train_quietly(config, tmp_path / "honest")
    dataset = data.load("digits")
    altered = replace(dataset, test_labels=(dataset.test_labels + 1) % 10)
    monkeypatch.setattr(data, "load", lambda *_: altered)
    other = train_quietly(config, tmp_path / "other")
    assert other["best"]["error/test"] > 0.5 > honest["best"]["error/test"]
    assert other["best"]["epoch"] == honest["best"]["epoch"]
    assert all(
        same(weights(tmp_path / "honest", file), weights(tmp_path / "other", file)) for file in ("best.pt", "last.pt")
    )


@pytest.fixture(scope="module")
def every_tag(tmp_path_factory):
    """The folder of a run that writes all tags that there are."""
    folder = tmp_path_factory.mktemp("every") / "run"
    config = Config(data="digits", device="cpu", epochs=100, evaluations=10, histograms=5, noise=0.1)
    train_quietly(config, folder)
    return folder


def test_the_event_file(every_tag):
    """Every tag, each as often as it should be there, and no other; one run, one folder; no cards of single dots."""
    tags = events(every_tag).Tags()
    linear = [f"linear{number}" for number in (1, 2, 3, 4)]
    curves = {f"{group}/{split}" for group in ("loss", "error", "mean_entropy") for split in data.SPLITS}
    curves |= {"mean_entropy/untrained", "mean_entropy/uniform", "penalty/l1", "penalty/l2", "lr"}
    curves |= {f"weight_rms/{layer}" for layer in linear}
    gradients = {f"gradient_rms/{layer}" for layer in linear}
    assert set(tags["scalars"]) == curves | gradients
    histograms = {f"{group}/{layer}" for group in ("weights", "input_gradient") for layer in linear}
    histograms |= {f"entropy/{split}" for split in data.SPLITS}
    assert set(tags["histograms"]) == histograms | {"entropy/untrained"} and tags["images"] == ["images/augmented"]
    steps = points(every_tag)
    assert steps["entropy/untrained"] == [0]
    assert all(steps[tag] == steps["loss/val"] for tag in curves) and len(steps["loss/val"]) == 11
    assert all(steps[tag] == steps["loss/val"][:-1] for tag in gradients), "no update follows the last evaluation"
    assert all(len(steps[tag]) == (5 if "gradient" in tag else 6) for tag in histograms)
    assert all(set(steps[tag]) <= set(steps["loss/val"]) for tag in histograms)
    assert [path for path in every_tag.parent.rglob("events.*") if path.parent != every_tag] == []


def test_the_readme_explains_every_tag(every_tag):
    readme, tags = (ROOT / "README.md").read_text(), events(every_tag).Tags()
    groups = {tag.split("/")[0] for kind in ("scalars", "histograms", "images") for tag in tags[kind]}
    assert [group for group in sorted(groups) if f"`{group}" not in readme] == []


def test_curves_and_files_agree(every_tag):
    reader, rows = events(every_tag), read_rows(every_tag)
    for tag in rows[0].keys() - {"epoch", "step", "seconds"}:
        assert [event.value for event in reader.Scalars(tag)] == pytest.approx([row[tag] for row in rows])


def test_values_at_step_k_belong_to_the_weights_after_k_updates(digits, tmp_path):
    train_quietly(replace(digits, histograms=5), tmp_path)
    reader, model, first_model = events(tmp_path), weights(tmp_path), untrained(digits)
    last = reader.Histograms("weights/linear1")[-1].histogram_value
    assert last.num == 6400 and last.sum == pytest.approx(model["linears.0.weight"].double().sum().item(), rel=1e-4)
    assert reader.Scalars("weight_rms/linear1")[-1].value == pytest.approx(
        model["linears.0.weight"].square().mean().sqrt().item(), rel=1e-5
    )
    first = reader.Histograms("weights/linear1")[0].histogram_value
    assert first.sum == pytest.approx(first_model.linears[0].weight.double().sum().item(), rel=1e-4)


def test_the_entropy_of_the_untrained_model_is_the_reference(digits, tmp_path):
    train_quietly(digits, tmp_path)
    reader, (images, labels) = events(tmp_path), splits_of(digits)["val"]
    expected = train_module.evaluate(untrained(digits), images, labels).entropy
    reference = [event.value for event in reader.Scalars("mean_entropy/untrained")]
    assert reference == pytest.approx([expected.mean().item()] * 6) and reference[0] < math.log(10)
    histogram = reader.Histograms("entropy/untrained")[0].histogram_value
    assert histogram == reader.Histograms("entropy/val")[0].histogram_value
    assert histogram.sum == pytest.approx(expected.double().sum().item(), rel=1e-5)
    assert histogram.max <= math.log(10) + 1e-6
    assert [event.value for event in reader.Scalars("mean_entropy/uniform")] == pytest.approx([math.log(10)] * 6)


def test_input_gradients_are_those_of_the_training_step(digits, tmp_path):
    """The whole fold is one batch here, so the gradient of the first step is that of the untrained model."""
    config = replace(digits, batch_size=72, l2=1e-3)
    train_quietly(config, tmp_path)
    model, inputs = untrained(config), []
    for layer in layers(model).values():
        layer.register_forward_pre_hook(lambda _, arguments: inputs.append(store_grad(arguments[0].clone())))
        layer.register_forward_pre_hook(lambda _, arguments: inputs[-1])
    objective(model, *splits_of(config)["train"], config).backward()
    reader = events(tmp_path)
    for number, x in enumerate(inputs, start=1):
        squares = x.grad.double().square().sum().item()
        written = reader.Histograms(f"input_gradient/linear{number}")[0].histogram_value
        assert written.sum_squares == pytest.approx(squares, rel=1e-3) and written.num == x.numel()
        rms = reader.Scalars(f"gradient_rms/linear{number}")[0].value
        assert rms == pytest.approx(math.sqrt(squares / x.numel()), rel=1e-4)
    assert number == 4


def test_the_hparams_tab(digits, tmp_path):
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    train_quietly(replace(digits, dropout=0.25, hidden=(50, 20)), tmp_path)
    reader = events(tmp_path)
    content = reader.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    hparams = parse_session_start_info_plugin_data(content).hparams
    assert set(hparams) == set(asdict(digits))
    assert hparams["dropout"].number_value == 0.25 and hparams["hidden"].string_value == "(50, 20)"
    assert "| dropout | 0.25 |" in reader.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()


# --- begin, go on, or only read


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(optimizer, digits, tmp_path):
    config = replace(digits, **EVERYTHING, optimizer=optimizer, momentum=0.9 * (optimizer == "sgd"))
    train_quietly(config, tmp_path / "whole")
    for cut in (0, 2, 7, 20):
        folder = tmp_path / str(cut)
        with pytest.raises(Cut):
            train_quietly(config, folder, on_evaluation=cut_at(cut))
        assert not (folder / "result.json").exists()
        torch.rand(3)  # whatever others drew in between
        train_quietly(config, folder)
        assert_equal_runs(folder, tmp_path / "whole")


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    """kill -9 at random moments, again and again, until the run has come to its end."""
    config = Config(data="digits", device="cpu", epochs=600, evaluations=60, dropout=0.2, noise=0.1)
    data.load(config.data)
    train_quietly(config, tmp_path / "whole")
    delay, killed = random.Random(0), tmp_path / "killed"
    for attempt in range(6):
        saved = modified(killed / "last.pt")
        process = forked(train_quietly, config, killed)
        while process.is_alive() and modified(killed / "last.pt") == saved:
            time.sleep(0.002)
        time.sleep(delay.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL or attempt > 1, "the run was over before it was killed"
    train_quietly(config, killed)
    assert_equal_runs(killed, tmp_path / "whole")
    assert not list(killed.glob(".*.tmp"))


def modified(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_run_killed_before_its_first_checkpoint_begins_anew(digits, whole, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut, ignore=shutil.ignore_patterns("*.pt", "result.json"))
    train_quietly(digits, cut)
    assert_equal_runs(cut, whole)


def test_what_is_saved_has_been_shown(digits, tmp_path, monkeypatch):
    """TensorBoard's thread writes late; a run killed right after a checkpoint must not lack the points before it."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, save = RecordWriter.write, train_module.Folder.save
    monkeypatch.setattr(RecordWriter, "write", lambda *arguments: (time.sleep(0.005), write(*arguments)))
    shown = []

    def look_and_save(folder, state, streams, progress):
        steps = points(folder.path)
        assert steps["loss/val"] == [row["step"] for row in progress.rows] == steps["gradient_rms/linear4"]
        shown.append(progress.epoch)
        save(folder, state, streams, progress)

    monkeypatch.setattr(train_module.Folder, "save", look_and_save)
    train_quietly(replace(digits, evaluations=20, epochs=5), tmp_path)
    assert shown == [1, 2, 3, 4, 5]


def press_at(epoch):
    def press(row, best):
        if row["epoch"] == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    return press


@pytest.mark.parametrize("epoch", [0, 4, 20])
def test_ctrl_c_saves_and_says_how_to_go_on(epoch, digits, whole, tmp_path):
    cut = tmp_path / "c u t"
    if epoch < 20:
        with pytest.raises(KeyboardInterrupt, match=re.escape(f"--resume '{cut}'")):
            train_quietly(digits, cut, on_evaluation=press_at(epoch))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert (cut / "last.pt").exists() and not (cut / "result.json").exists()
        with pytest.raises(SystemExit):
            main(["--resume", str(cut)])
    else:  # nothing is left to interrupt
        train_quietly(digits, cut, on_evaluation=press_at(epoch))
    assert_equal_runs(cut, whole)


def test_a_finished_run_is_only_read(digits, tmp_path):
    result = train_quietly(digits, tmp_path)
    before = contents(tmp_path)
    assert train_quietly(digits, tmp_path) == result
    assert contents(tmp_path) == before


def test_a_diverged_run_stops_and_keeps_its_files(digits, tmp_path, capfd):
    result = train_quietly(replace(digits, lr=1e10, epochs=500, evaluations=500), tmp_path)
    assert result["status"] == "diverged" and 0 < result["step"] <= 10
    assert result["last"]["epoch"] < result["step"] and math.isfinite(result["last"]["loss/train"])
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "diverged"
    assert (tmp_path / "metrics.csv").exists() and all(p.isfinite().all() for p in weights(tmp_path).values())
    with pytest.raises(SystemExit) as stop:
        main(["--resume", str(tmp_path)])
    assert stop.value.code == 1 and "try a lower --lr" in capfd.readouterr().out


def test_other_settings_or_other_data_are_refused(digits, tmp_path, monkeypatch, capfd):
    train_quietly(digits, tmp_path / "over")
    with pytest.raises(Cut):
        train_quietly(digits, tmp_path / "cut", on_evaluation=cut_at(4))
    before = contents(tmp_path)
    for name in ("over", "cut"):
        with pytest.raises(RunError, match=r"lr 0.001, not 0.01; dropout 0.0, not 0.5; take another name"):
            train_quietly(replace(digits, lr=0.01, dropout=0.5), tmp_path / name)
        arguments = ("--data", "digits", "--epochs", 7, "--runs-dir", tmp_path, "--name", name)
        code, line = refused(capfd, main, *arguments)
        assert code == 1 and "epochs 20, not 7" in line
    dataset = data.load("digits")
    altered = replace(dataset, train_labels=dataset.train_labels[::-1].copy())
    monkeypatch.setattr(data, "load", lambda *_: altered)
    for name in ("over", "cut"):
        with pytest.raises(RunError, match=f"data_sha256 {dataset.sha256}, not {altered.sha256}"):
            train_quietly(digits, tmp_path / name)
        assert refused(capfd, main, "--resume", tmp_path / name)[0] == 1
    assert contents(tmp_path) == before


def test_two_processes_on_one_run(digits, whole, tmp_path, capfd):
    """The second is refused in one line, and the points are not doubled."""
    run, at_work, go = tmp_path / "run", tmp_path / "at work", tmp_path / "go"

    def wait(row, best):
        at_work.touch()
        while row["epoch"] == 4 and not go.exists():
            time.sleep(0.01)

    first = forked(lambda: train_quietly(digits, run, on_evaluation=wait))
    while first.is_alive() and not at_work.exists():
        time.sleep(0.01)
    code, line = refused(capfd, main, "--resume", run)
    assert code == 1 and "another process is at work on this run" in line
    go.touch()
    first.join()
    assert first.exitcode == 0
    assert_equal_runs(run, whole)


def test_a_clock_that_was_set_back(digits, whole, tmp_path):
    """TensorBoard reads a run's files in the order of their names, and those begin with the time."""
    cut = tmp_path / "cut"
    for epoch in (4, 7, 12):
        with pytest.raises(Cut):
            train_quietly(digits, cut, on_evaluation=cut_at(epoch))
        for path in sorted(cut.glob(EVENT_FILES)):
            stamp = path.name.split(".")[3]
            path.rename(cut / path.name.replace(stamp, str(int(stamp) + 3600)))
    train_quietly(digits, cut)
    assert len(list(cut.glob(EVENT_FILES))) == 4
    assert_equal_runs(cut, whole)


# --- bad input: one line, exit code 2 for wrong arguments and 1 for anything else


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--dropout 1.5", ("--dropout 1.5", "0 to 0.99")),
        ("--l2 -1", ("--l2 -1", "0 to 1000")),
        ("--l1 nan", ("--l1 nan",)),
        ("--fold 20", ("--fold 20", "0 to 19")),
        ("--fraction 0.96", ("--fraction 0.96", "0.001 to 0.95")),
        ("--hidden 0", ("--hidden", "1 to 10000")),
        ("--norm foo", ("foo", "none", "batch", "layer")),
        ("--epochs ten", ("--epochs", "ten")),
        ("--dropuot 0.1", ("--dropuot", "did you mean --dropout")),
        ("--data mnist --data-dir x", ("--data-dir x", "exclude")),
        ("--momentum 0.9", ("--momentum 0.9", "--optimizer sgd")),
        ("--resume runs/x --l2 1e-4", ("--resume runs/x", "drop")),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, main, *arguments.split())
    assert code == 2 and all(word in line for word in words), line


def test_everything_else_that_is_wrong(digits, tmp_path, capfd):
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("five years of work")
    here = ("--data", "digits", "--epochs", 2, "--device", "cpu", "--runs-dir", tmp_path)
    for arguments, words in (
        ((*here[:-1], tmp_path / "file/runs"), "choose another --runs-dir"),
        ((*here, "--name", "other"), "holds other things than a run; choose another --name"),
        ((*here, "--name", "a/b"), "without slashes"),
        ((*here, "--name", ".."), "--name ..: allowed is the name of a folder"),
        ((*here, "--name", "n" * 300), "File name too long"),
        ((*here, "--norm", "batch", "--batch-size", 71), "--batch-size 71"),
        ((*here, "--device", "mps"), "--device mps: this machine has none"),
        (("--resume", tmp_path / "nowhere"), "No such file"),
        (("--resume", tmp_path / "other"), "No such file"),
        (("--resume", tmp_path / "file"), "Not a directory"),
        (("--data-dir", tmp_path), "no such file"),
    ):
        code, line = refused(capfd, main, *arguments)
        assert code == 1 and words in line, line
    assert [path.name for path in (tmp_path / "other").iterdir() if path.name != ".lock"] == ["thesis.txt"]


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory):
    """The folder of a run that was cut off."""
    folder = tmp_path_factory.mktemp("cut") / "cut"
    config = Config(data="digits", device="cpu", epochs=20, evaluations=5, histograms=3)
    with pytest.raises(Cut):
        train_quietly(config, folder, on_evaluation=cut_at(7))
    return folder


class Exploit:
    def __reduce__(self):
        return (exec, ("import os; os.environ['EXECUTED'] = 'yes'",))


def altered_checkpoint(change):
    """`change` of what is in a checkpoint: in place, or by what it returns."""

    def alter(content):
        checkpoint, file = torch.load(io.BytesIO(content), weights_only=True), io.BytesIO()
        changed = change(checkpoint)
        torch.save(checkpoint if changed is None else changed, file)
        return file.getvalue()

    return alter


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "config.json": {"empty": lambda _: b"", "cut": lambda content: content[:50]},
    "result.json": {"empty": lambda _: b"", "cut": lambda content: content[:50]},
    "last.pt": {
        "empty": lambda _: b"", "cut": lambda content: content[: len(content) // 2], "bit": flipped,
        "code": altered_checkpoint(lambda _: Exploit()),
    },
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), [(file, damage) for file, all_ in DAMAGES.items() for damage in all_])
def test_a_damaged_file_is_one_line_and_stays(file, damage, cut_run, tmp_path, capfd):
    folder = shutil.copytree(cut_run, tmp_path / "cut")
    if file == "result.json":
        main_quietly("--resume", folder)
        capfd.readouterr()
    path, alter = folder / file, DAMAGES[file][damage]
    content = path.read_bytes()
    path.write_bytes(alter(content))
    before = contents(folder)
    code, line = refused(capfd, main, "--resume", folder)
    assert code == 1 and "SHOW_TRACEBACK" not in line, line
    assert str(path) in line, line
    assert contents(folder) == before and "EXECUTED" not in os.environ


def main_quietly(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 0


def test_damaged_measurements_are_written_anew(cut_run, digits, whole, tmp_path):
    """Nothing reads metrics.csv to go on; and a checkpoint that cannot be used may be deleted, as its line says."""
    for name in ("metrics.csv", "last.pt"):
        folder = shutil.copytree(cut_run, tmp_path / name)
        (folder / name).write_bytes(b"\xff,\n\n1")
        if name == "last.pt":
            (folder / name).unlink()
        train_quietly(digits, folder)
        assert_equal_runs(folder, whole)


# --- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def fill(path, leave):
    """Writes to `path` until its disk has `leave` bytes left."""
    with path.open("wb", buffering=0) as file:
        try:
            while shutil.disk_usage(path.parent).free:
                file.write(bytes(4096))
        except OSError:
            pass
        file.truncate(max(0, path.stat().st_size - leave))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
@pytest.mark.parametrize("kilobytes", [0, 400])
def test_a_full_disk(kilobytes, small_disk, digits, tmp_path, capfd):
    """One line; and after space is made, the same command goes on to the same result."""
    config = replace(digits, evaluations=10, histograms=10)
    train_quietly(config, tmp_path / "whole")
    ballast, arguments = small_disk / "ballast", [*shlex.split(command(config))[2:], "--runs-dir", small_disk]

    def fill_at_4(row, best):
        if row["epoch"] == 4:
            fill(ballast, kilobytes * 1024)

    with pytest.raises(OSError, match="No space left"):
        train_quietly(config, small_disk / "run", on_evaluation=fill_at_4)
    fill(ballast, 0)
    code, line = refused(capfd, main, *arguments, "--name", "run")
    assert code == 1 and "No space left" in line and "SHOW_TRACEBACK" not in line, line
    ballast.unlink()
    main_quietly(*arguments, "--name", "run")
    assert_equal_runs(small_disk / "run", tmp_path / "whole")
    assert not list((small_disk / "run").glob(".*.tmp"))


def test_a_disk_that_becomes_read_only(small_disk, digits, whole, capfd):
    with pytest.raises(Cut):
        train_quietly(digits, small_disk / "cut", on_evaluation=cut_at(4))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for arguments in (("--resume", small_disk / "cut"), ("--data", "digits", "--runs-dir", small_disk)):
        code, line = refused(capfd, main, *arguments)
        assert code == 1 and "Read-only file system" in line and str(small_disk) in line, line
        assert "SHOW_TRACEBACK" not in line
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    main_quietly("--resume", small_disk / "cut")
    assert_equal_runs(small_disk / "cut", whole)


# --- the screen


def test_the_screen_of_a_run(tmp_path, capfd):
    arguments = ["--data", "digits", "--epochs", "3", "--dropout", "0.2", "--l1", "1e-3", "--l2", "1e-4"]
    main_quietly(*arguments, "--runs-dir", tmp_path)
    out, err = capfd.readouterr()
    assert err == "", "a progress bar where there is no terminal"
    assert "b = 13.89" in out and "sigma = 8.333" in out  # 1 / (72 * 1e-3) and 1 / sqrt(2 * 72 * 1e-4)
    costs = ("train cost", "val cost", "test cost", "lowest validation cost, epoch 3", "last epoch, 3")
    for words in (*costs, f"tensorboard --logdir {tmp_path}"):
        assert words in out
    assert "python train.py --data digits --fold 1 --epochs 3 --dropout 0.2 --l1 0.001 --l2 0.0001" in out
    assert max(map(len, out.splitlines()[:7])) <= 100, "wider than a terminal"


def test_falling_back_to_digits_is_said_before_and_after(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(data, "fetch_mnist", lambda: (_ for _ in ()).throw(data.DataError("the network is away")))
    main_quietly("--epochs", 3, "--runs-dir", tmp_path)
    err = capfd.readouterr().err
    assert err.count("NOT MNIST") == 2 and err.count("the network is away") == 2
    assert next(tmp_path.glob("data=digits_epochs=3-*")).is_dir()


def test_a_command_gives_back_its_settings():
    config = Config(dropout=0.25, l1=1e-6, norm="layer", data_dir="a folder/with 'quotes'", fold=3, hidden=(50, 20))
    assert parse(Options, shlex.split(command(config))[2:]).config == config


def test_folders_are_called_after_what_differs():
    assert run_name(Config()) == "baseline"
    assert run_name(Config(hidden=(50, 20), l2=1e-4)) == "hidden=50-20_l2=0.0001"
    assert run_name(Config(data_dir="/far/away/mine", seed=3)) == "data_dir=mine_seed=3"


# --- processes of their own


def test_importing_does_no_work():
    """No seed, no download, no parsing; and nothing heavy that a plain run can do without."""
    code = (
        "import sys, torch; before = torch.get_rng_state(); sys.argv = ['x', '--nonsense'];"
        "import augment, data, model, observe, regularizers, train, support.folder, support.screen, support.shell;"
        "assert torch.equal(before, torch.get_rng_state());"
        "print(sorted({'lightning', 'optuna', 'torchvision', 'datamaestro', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
    """`train.py --help | head -1`, and a run, with a head that is gone before anything comes."""
    for arguments in (["--help"], ["--data", "digits", "--epochs", "2", "--runs-dir", str(tmp_path / "runs")]):
        reader, writer = os.pipe()
        os.close(reader)

        def piped(writer=writer, arguments=arguments):
            sys.stdout, sys.stderr = os.fdopen(writer, "w"), (tmp_path / "screen").open("w")
            os.dup2(writer, 1)
            main(arguments)

        process = forked(piped)
        os.close(writer)
        process.join()
        assert process.exitcode == 1 and (tmp_path / "screen").read_text() == ""


def test_a_run_in_the_background_can_be_interrupted(digits, tmp_path):
    """A shell starts `script &` with SIGINT ignored; kill -INT stops it all the same, with 130 and one line."""
    run = tmp_path / "run"
    arguments = [*shlex.split(command(replace(digits, epochs=2000)))[2:], "--runs-dir", str(tmp_path), "--name", "run"]

    def background():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout = sys.stderr = (tmp_path / "screen").open("w")
        main(arguments)

    process = forked(background)
    while process.is_alive() and not (run / "last.pt").exists():
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "screen").read_text().endswith(f"interrupted; go on with: python train.py --resume {run}\n")
    assert not (run / "result.json").exists()


# --- on real MNIST


def test_a_run_on_mnist_overfits(mnist, tmp_path):
    result = train_quietly(replace(mnist, evaluations=3), tmp_path)
    assert result["parameters"] == 99_710
    assert result["sizes"] == {"train": 3000, "val": 57_000, "test": 10_000}
    assert result["best"]["epoch"] < 60 and result["best"]["loss/val"] < result["last"]["loss/val"]
    assert result["last"]["error/train"] == 0 and 0.05 < result["last"]["error/test"] < 0.11
