import csv
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import data
import train as train_module
from regularizers import l1_penalty, l2_penalty
from train import Config, command, main, objective, train

ROOT = Path(train_module.__file__).parent
EVERYTHING = {
    "dropout": 0.2, "norm": "batch", "l1": 1e-5, "l2": 1e-4, "schedule": "one-cycle", "lr": 3e-3,
    "noise": 0.1, "rotate": 10.0, "zoom": 0.1, "shift": 1.0, "shear": 0.1, "elastic": 8.0, "batch_size": 20,
}  # fmt: skip


def weights(folder, file="last.pt"):
    return torch.load(Path(folder) / file, weights_only=True)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def events(folder):
    """What TensorBoard's own reader finds in the folder of a run, nothing left out."""
    unlimited = dict.fromkeys(("scalars", "histograms", "images", "tensors", "compressedHistograms"), 0)
    reader = EventAccumulator(str(folder), unlimited)
    reader.Reload()
    return reader


def points(folder):
    """The steps at which each tag was written, in order."""
    reader = events(folder)
    tags = reader.Tags()
    steps = {tag: [event.step for event in reader.Scalars(tag)] for tag in tags["scalars"]}
    return steps | {tag: [event.step for event in reader.Histograms(tag)] for tag in tags["histograms"]}


# --- what a run is


def test_same_seed_same_weights(digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    runs = [train(c, str(tmp_path), quiet=True)["folder"] for c in (config, config, replace(config, seed=1))]
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


def test_looking_changes_nothing(digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    seldom = train(replace(config, evaluations=2, histograms=0), str(tmp_path), quiet=True)
    often = train(replace(config, evaluations=20, histograms=20), str(tmp_path), quiet=True)
    train_only = train(replace(config, evaluations=20), str(tmp_path), splits=("train", "val"), quiet=True)
    assert same(weights(seldom["folder"]), weights(often["folder"]))
    assert same(weights(seldom["folder"]), weights(train_only["folder"]))


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_setting_reaches_the_run(name, digits, tmp_path):
    baseline = replace(digits, lr=2e-3, epochs=4)  # that one-cycle alone makes a difference
    changed = train(replace(baseline, **{name: EVERYTHING[name]}), str(tmp_path), quiet=True)
    model = weights(changed["folder"])
    baseline = weights(train(baseline, str(tmp_path), quiet=True)["folder"])
    assert model.keys() != baseline.keys() or not same(model, baseline)
    assert json.loads((Path(changed["folder"]) / "config.json").read_text())[name] == EVERYTHING[name]


def test_methods_share_initialisation_and_batches(digits, tmp_path):
    """At one fold and seed two methods begin with the same weights and see the same batches."""
    shown = []
    for config in (digits, replace(digits, dropout=0.5, l2=1e-3)):
        _, order, _ = train_module.random_streams(config.seed, torch.device("cpu"))
        batches = data.Batches(*data.split_tensors(data.load("digits"), "train", 0, torch.device("cpu")), 20, order)
        shown.append((train_module.build_model(config, data.load("digits"), 7).state_dict(), list(batches)))
    assert same(shown[0][0], shown[1][0])
    assert all(torch.equal(a[1], b[1]) for a, b in zip(shown[0][1], shown[1][1], strict=True))


def test_objective_is_cross_entropy_and_penalties(digits):
    config = replace(digits, l1=0.01, l2=0.1)
    model = train_module.build_model(config, data.load("digits"), 0)
    images, labels = torch.rand(5, 8, 8), torch.arange(5)
    p = model(images).softmax(1)[range(5), labels]
    expected = -p.log().mean() + 0.01 * l1_penalty(model) + 0.1 * l2_penalty(model)
    assert objective(model, images, labels, config).item() == pytest.approx(expected.item(), rel=1e-5)
    assert objective(model, images, labels, digits).item() == pytest.approx(-p.log().mean().item(), rel=1e-5)


def test_the_unregularised_run_has_no_weight_decay(digits):
    model = train_module.build_model(digits, data.load("digits"), 0)
    optimizer, scheduler = train_module.build_optimizer(model, digits, 72)
    assert scheduler is None and optimizer.defaults["weight_decay"] == 0


def test_one_cycle_peaks_at_lr_and_ends_near_zero(digits, tmp_path):
    config = replace(digits, schedule="one-cycle", lr=1e-2, epochs=100, evaluations=100)
    result = train(config, str(tmp_path), quiet=True)
    with (Path(result["folder"]) / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert max(rates) == pytest.approx(1e-2, rel=0.01) and rates.index(max(rates)) in range(25, 36)
    assert rates[-2] < 1e-6


def test_evaluation_is_in_evaluation_mode_and_leaves_the_mode(digits):
    model = train_module.build_model(replace(digits, dropout=0.5, norm="batch"), data.load("digits"), 0)
    images, labels = data.split_tensors(data.load("digits"), "val", 0, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loss, error, entropies = train_module.evaluate(model, images, labels)
    assert model.training and same(before, model.state_dict())
    logits = model.eval()(images)
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert error == pytest.approx((logits.argmax(1) != labels).double().mean().item())
    assert entropies.shape == labels.shape


# --- what a run writes


def test_the_folder_of_a_run(digits, tmp_path):
    result = train(replace(digits, l2=1e-3), str(tmp_path), name="my-run", quiet=True)
    folder = tmp_path / "my-run"
    assert result["folder"] == str(folder)
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents."))
    assert files == ["best.pt", "config.json", "last.pt", "metrics.csv", "result.json"]
    assert len(list(folder.iterdir())) == 6
    assert json.loads((folder / "config.json").read_text()) == asdict(replace(digits, l2=1e-3))
    written = json.loads((folder / "result.json").read_text())
    assert written == {key: value for key, value in result.items() if key != "folder"}
    assert written["data"] == "digits" and written["status"] == "finished" and written["device"] == "cpu"
    assert written["sizes"] == {"train": 72, "val": 1365, "test": 360} and written["parameters"] == 27_710
    with (folder / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == [0, 2, 4, 7, 12, 20] == [row["step"] for row in rows]
    measures = [f"{split}_{measure}" for split in data.SPLITS for measure in ("loss", "error")]
    for moment, row in (("best", min(rows, key=lambda row: row["val_loss"])), ("last", rows[-1])):
        assert written[moment].keys() == {"epoch", *measures}
        assert written[moment] == {name: row[name] for name in written[moment]}
    assert rows[-1]["l2"] == pytest.approx(
        1e-3 * sum(w.square().sum().item() for n, w in weights(folder).items() if "weight" in n)
    )


def test_best_and_last_are_the_weights_that_they_say(digits, tmp_path):
    """An over-fitted run, whose best validation cost comes long before its end."""
    result = train(replace(digits, epochs=300, lr=1e-2, evaluations=20), str(tmp_path), quiet=True)
    assert result["best"]["epoch"] < 300 and result["best"]["val_loss"] < result["last"]["val_loss"]
    dataset = data.load("digits")
    for moment in ("best", "last"):
        model = train_module.build_model(digits, dataset, 0)
        model.load_state_dict(weights(result["folder"], f"{moment}.pt"))
        val = data.split_tensors(dataset, "val", 0, torch.device("cpu"))
        assert train_module.evaluate(model, *val)[0] == pytest.approx(result[moment]["val_loss"], abs=1e-6)


def test_test_labels_choose_nothing(digits, tmp_path, monkeypatch):
    config = replace(digits, epochs=100, lr=1e-2, evaluations=20)
    honest = train(config, str(tmp_path), quiet=True)
    dataset = data.load("digits")
    altered = replace(dataset, test_labels=(dataset.test_labels + 1) % 10)
    monkeypatch.setattr(data, "load", lambda *_: altered)
    other = train(config, str(tmp_path), quiet=True)
    assert other["best"]["test_error"] > 0.5 > honest["best"]["test_error"]
    assert other["best"]["epoch"] == honest["best"]["epoch"]
    assert all(same(weights(honest["folder"], file), weights(other["folder"], file)) for file in ("best.pt", "last.pt"))


def test_the_event_file(digits, tmp_path):
    """Every tag that the README explains, each as often as it says, and no other; one run, one folder."""
    config = replace(digits, epochs=100, evaluations=10, histograms=5, noise=0.1)
    result = train(config, str(tmp_path), quiet=True)
    reader, folder = events(result["folder"]), Path(result["folder"])
    tags = reader.Tags()
    curves = {f"{group}/{split}" for group in ("loss", "accuracy", "entropy_mean") for split in data.SPLITS}
    curves |= {"entropy_mean/untrained", "entropy_mean/uniform", "penalty/l1", "penalty/l2", "lr"}
    metrics = {
        f"{moment}/{split}_{m}" for moment in ("best", "last") for split in data.SPLITS for m in ("loss", "error")
    }
    assert set(tags["scalars"]) == curves | metrics | {f"{moment}/epoch" for moment in ("best", "last")}
    layers = [f"linear{number}" for number in (1, 2, 3, 4)]
    histograms = {f"{group}/{layer}" for group in ("weights", "input_gradient") for layer in layers}
    histograms |= {f"entropy/{name}" for name in (*data.SPLITS, "untrained")}
    assert set(tags["histograms"]) == histograms and tags["images"] == ["images/augmented"]
    steps = points(folder)
    assert all(steps[tag] == steps["loss/val"] for tag in curves) and len(steps["loss/val"]) == 11
    assert all(len(steps[tag]) == (5 if "gradient" in tag else 6) for tag in histograms)
    assert all(set(steps[tag]) <= set(steps["loss/val"]) for tag in histograms)
    assert all(len(steps[tag]) == 1 for tag in metrics)
    assert [path for path in tmp_path.rglob("events.*") if path.parent != folder] == []
    readme = (ROOT / "README.md").read_text()
    for tag in set(tags["scalars"]) | histograms | {"images/augmented"}:
        assert f"`{tag.split('/')[0]}" in readme, f"the README does not explain {tag}"


def test_values_at_step_k_belong_to_the_weights_after_k_updates(digits, tmp_path):
    result = train(replace(digits, histograms=5), str(tmp_path), quiet=True)
    reader, model = events(result["folder"]), weights(result["folder"])
    last = reader.Histograms("weights/linear1")[-1].histogram_value
    assert last.num == 6400 and last.sum == pytest.approx(model["linears.0.weight"].double().sum().item(), rel=1e-4)
    untrained = train_module.build_model(
        digits, data.load("digits"), train_module.random_streams(0, torch.device("cpu"))[0]
    )
    first = reader.Histograms("weights/linear1")[0].histogram_value
    assert first.sum == pytest.approx(untrained.linears[0].weight.double().sum().item(), rel=1e-4)
    reference = [event.histogram_value for event in reader.Histograms("entropy/untrained")]
    assert all(h.sum == reference[0].sum for h in reference)
    assert reference[0].sum == reader.Histograms("entropy/val")[0].histogram_value.sum
    assert reference[0].max <= math.log(10) + 1e-6
    assert reader.Scalars("entropy_mean/uniform")[0].value == pytest.approx(math.log(10))


def test_input_gradients_are_those_of_the_training_step(digits, tmp_path):
    """The whole fold is one batch here, so the gradient of the first step is that of the untrained model."""
    result = train(replace(digits, batch_size=72), str(tmp_path), quiet=True)
    model = train_module.build_model(
        digits, data.load("digits"), train_module.random_streams(0, torch.device("cpu"))[0]
    )
    images, labels = data.split_tensors(data.load("digits"), "train", 0, torch.device("cpu"))
    inputs = []
    objective(model, images, labels, digits, inputs).backward()
    for number, x in enumerate(inputs, start=1):
        written = events(result["folder"]).Histograms(f"input_gradient/linear{number}")[0].histogram_value
        assert written.sum_squares == pytest.approx(x.grad.double().square().sum().item(), rel=1e-3)
        assert written.num == x.numel()


def test_the_hparams_tab(digits, tmp_path):
    from tensorboard.plugins.hparams.metadata import (
        EXPERIMENT_TAG,
        SESSION_START_INFO_TAG,
        parse_experiment_plugin_data,
    )
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data as parse_start

    result = train(replace(digits, dropout=0.25), str(tmp_path), quiet=True)
    reader = events(result["folder"])
    start = parse_start(reader.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content)
    assert set(start.hparams) == set(asdict(digits)) and start.hparams["dropout"].number_value == 0.25
    experiment = parse_experiment_plugin_data(reader.SummaryMetadata(EXPERIMENT_TAG).plugin_data.content)
    values = {info.name.tag: reader.Scalars(info.name.tag)[0].value for info in experiment.metric_infos}
    assert len(values) == 12
    assert values["best/val_loss"] == pytest.approx(result["best"]["val_loss"])
    assert values["last/test_error"] == pytest.approx(result["last"]["test_error"])


# --- runs that are cut off


def assert_equal_runs(resumed, whole):
    for file in ("best.pt", "last.pt"):
        assert same(weights(resumed, file), weights(whole, file))
    rows = []
    for folder in (resumed, whole):
        with (Path(folder) / "metrics.csv").open() as file:
            rows.append(
                [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
            )
    assert rows[0] == rows[1]
    assert points(resumed) == points(whole)
    assert all(count == 1 for steps in points(resumed).values() for count in Counter(steps).values())
    results = [json.loads((Path(folder) / "result.json").read_text()) for folder in (resumed, whole)]
    assert all(results[0][key] == results[1][key] for key in ("status", "best", "last"))


@pytest.mark.parametrize("cut", [0, 2, 7, 20])
def test_a_run_that_fell_over_goes_on_to_the_same_weights(cut, digits, tmp_path):
    config = replace(digits, **EVERYTHING)
    whole = train(config, str(tmp_path), quiet=True)["folder"]

    def fall_over(row, best):
        if row["epoch"] == cut:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(config, str(tmp_path), name="cut", quiet=True, on_evaluation=fall_over)
    assert not (tmp_path / "cut" / "result.json").exists()
    train(config, resume=str(tmp_path / "cut"), quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def modified(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    """kill -9 at random moments, again and again, until the run has come to its end."""
    config = Config(data="digits", device="cpu", epochs=3000, evaluations=100, dropout=0.2, noise=0.1)
    whole = train(config, str(tmp_path), quiet=True)["folder"]
    delay = random.Random(0)
    arguments = [*command(config).split()[2:], "--device", "cpu", "--runs-dir", str(tmp_path), "--name", "killed"]
    killed = tmp_path / "killed"
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *arguments], env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path,
        )  # fmt: skip
        saved = modified(killed / "last.pt")
        while process.poll() is None and modified(killed / "last.pt") == saved:
            time.sleep(0.01)
        time.sleep(delay.uniform(0, 0.5))
        process.kill()
        process.wait()
        arguments = ["--resume", str(killed)]
    assert not (killed / "result.json").exists(), "the run was over before it was killed"
    train(config, resume=str(killed), quiet=True)
    assert_equal_runs(killed, whole)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(digits, tmp_path):
    whole = train(digits, str(tmp_path), name="whole", quiet=True)["folder"]
    for path in Path(whole).iterdir():
        if path.name in ("config.json", "metrics.csv") or path.name.startswith("events"):
            (tmp_path / "cut").mkdir(exist_ok=True)
            (tmp_path / "cut" / path.name).write_bytes(path.read_bytes())
    train(digits, resume=str(tmp_path / "cut"), quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_ctrl_c_saves_and_says_how_to_go_on(digits, tmp_path, capsys):
    whole = train(digits, str(tmp_path), quiet=True)["folder"]

    def press(row, best):
        if row["epoch"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=f"--resume {tmp_path / 'cut'}"):
        train(digits, str(tmp_path), name="cut", quiet=True, on_evaluation=press)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(digits, resume=str(tmp_path / "cut"), quiet=True)
    assert_equal_runs(tmp_path / "cut", whole)


def test_resuming_a_finished_run_trains_nothing(digits, tmp_path):
    result = train(digits, str(tmp_path), quiet=True)
    before = {path: path.read_bytes() for path in Path(result["folder"]).iterdir()}
    assert train(Config(), resume=result["folder"], quiet=True) == result
    assert {path: path.read_bytes() for path in Path(result["folder"]).iterdir()} == before


def test_a_diverged_run_stops_and_keeps_its_files(digits, tmp_path):
    result = train(replace(digits, lr=1e10, epochs=500), str(tmp_path), quiet=True)
    assert result["status"] == "diverged" and 0 < result["step"] <= 10
    assert result["last"]["epoch"] < result["step"] and math.isfinite(result["last"]["train_loss"])
    folder = Path(result["folder"])
    assert json.loads((folder / "result.json").read_text())["status"] == "diverged"
    assert (folder / "metrics.csv").exists() and all(p.isfinite().all() for p in weights(folder).values())


# --- bad input: one line, exit code 2 for wrong arguments and 1 for anything else


def refused(capfd, *arguments):
    """Exit code and what is on the screen."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    code = stop.value.code
    if isinstance(code, str):  # the interpreter prints it and exits with 1
        code, err = 1, err + code + "\n"
    assert out == "" and err.count("\n") == 1 and err.startswith("error: "), f"{out}{err}"
    return code, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--dropout 1.5", ("--dropout 1.5", "0 to 0.99")),
        ("--l2 -1", ("--l2 -1", "0 to 1000")),
        ("--l1 nan", ("--l1 nan",)),
        ("--lr 0", ("--lr 0",)),
        ("--epochs 0", ("--epochs 0",)),
        ("--fold 20", ("--fold 20", "0 to 19")),
        ("--norm foo", ("foo", "none", "batch", "layer")),
        ("--epochs ten", ("--epochs", "ten")),
        ("--dropuot 0.1", ("--dropuot",)),
        ("--data mnist --data-dir x", ("--data-dir x", "exclude")),
        ("--resume runs/x --l2 1e-4", ("--resume runs/x", "drop")),
    ],
)
def test_wrong_arguments(arguments, words, capfd):
    code, line = refused(capfd, *arguments.split())
    assert code == 2 and all(word in line for word in words)


def test_everything_else_that_is_wrong(digits, tmp_path, capfd):
    (tmp_path / "file").touch()
    digits_here = ("--data", "digits", "--epochs", 2, "--device", "cpu", "--runs-dir", tmp_path)
    train(digits, str(tmp_path), name="taken", quiet=True)
    for arguments, words in (
        ((*digits_here[:-1], tmp_path / "file" / "runs"), "choose another --runs-dir"),
        ((*digits_here, "--name", "taken"), "exists already"),
        ((*digits_here, "--name", "a/b"), "without slashes"),
        ((*digits_here, "--norm", "batch", "--batch-size", 71), "--batch-size 71"),
        (("--resume", tmp_path / "nowhere"), "No such file"),
        (("--data-dir", tmp_path), "no such file"),
    ):
        code, line = refused(capfd, *arguments)
        assert code == 1 and words in line, line


def test_a_foreign_or_damaged_checkpoint_is_refused_and_left(digits, tmp_path, capfd):
    def stop(row, best):
        if row["epoch"] == 7:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(digits, str(tmp_path), name="cut", quiet=True, on_evaluation=stop)
    path = tmp_path / "cut" / "last.pt"
    good = path.read_bytes()
    checkpoint = torch.load(path, weights_only=True)
    executed = tmp_path / "executed"

    class Exploit:
        def __reduce__(self):
            return (Path.touch, (executed,))

    def saved(value):
        torch.save(value, path)
        return path.read_bytes()

    middle = len(good) // 2
    bad = [
        b"", b"PK", good[:middle], good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        saved(Exploit()), saved(checkpoint | {"epoch": -3}), saved(checkpoint | {"optimizer": 7}), saved([1]),
        saved(checkpoint | {"model": {}}), saved({k: v for k, v in checkpoint.items() if k != "run"}),
        saved(checkpoint | {"config": checkpoint["config"] | {"lr": 1.0}}), saved(checkpoint | {"random": {}}),
    ]  # fmt: skip
    before = [(p, p.read_bytes()) for p in path.parent.iterdir() if p != path]
    for content in bad:
        path.write_bytes(content)
        code, line = refused(capfd, "--resume", path.parent)
        assert code == 1 and "last.pt: damaged or foreign" in line
        assert path.read_bytes() == content and not executed.exists()
    assert before == [(p, p.read_bytes()) for p in path.parent.iterdir() if p != path]
    path.write_bytes(good)
    train(digits, resume=str(path.parent), quiet=True)


def test_damaged_settings_are_one_line(tmp_path, capfd):
    for text in ("{", "[]", '{"epochs": "many"}', '{"color": 1}', '{"dropout": 7}'):
        (tmp_path / "config.json").write_text(text)
        code, line = refused(capfd, "--resume", tmp_path)
        assert code == 1 and "config.json: damaged" in line


# --- the screen


def test_the_screen_of_a_run(digits, tmp_path, capfd):
    arguments = ["--data", "digits", "--epochs", "3", "--dropout", "0.2", "--l1", "1e-3", "--l2", "1e-4"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--runs-dir", str(tmp_path)])
    out, err = capfd.readouterr()
    assert stop.value.code == 0 and err == "", "a progress bar where there is no terminal"
    assert "b = 13.89" in out and "sigma = 8.333" in out  # 1 / (72 * 1e-3) and 1 / sqrt(2 * 72 * 1e-4)
    for words in (
        "train cost",
        "val cost",
        "test cost",
        "best, epoch",
        "last, epoch",
        f"tensorboard --logdir {tmp_path}",
    ):
        assert words in out
    assert "python train.py --data digits --fold 1 --epochs 3 --dropout 0.2 --l1 0.001 --l2 0.0001" in out


def test_falling_back_to_digits_is_said_before_and_after(digits, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(data, "fetch_mnist", lambda: (_ for _ in ()).throw(data.DataError("the network is away")))
    with pytest.raises(SystemExit):
        main(["--epochs", "3", "--runs-dir", str(tmp_path)])
    err = capfd.readouterr().err
    assert err.count("NOT MNIST") == 2 and err.count("the network is away") == 2
    assert next(tmp_path.glob("data=digits_epochs=3-*")).is_dir()


def test_a_command_gives_back_its_settings():
    from shell import parse

    config = Config(dropout=0.25, l1=1e-6, norm="layer", data_dir="a folder/with 'quotes'", fold=3)
    import shlex

    assert parse(Config, shlex.split(command(config))[2:]) == config


def test_importing_does_no_work():
    """No seed, no download, no parsing; and nothing heavy that a plain run can do without."""
    code = (
        "import sys, torch; before = torch.get_rng_state(); sys.argv = ['x', '--nonsense'];"
        "import augment, data, model, observe, regularizers, shell, train;"
        "assert torch.equal(before, torch.get_rng_state());"
        "print(sorted({'lightning', 'optuna', 'torchvision', 'datamaestro', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


# --- on real MNIST


def test_a_run_on_mnist_overfits(mnist, tmp_path):
    result = train(mnist, str(tmp_path), quiet=True)
    assert result["parameters"] == 99_710
    assert result["sizes"] == {"train": 3000, "val": 57_000, "test": 10_000}
    assert result["best"]["epoch"] < 60 and result["best"]["val_loss"] < result["last"]["val_loss"]
    assert result["last"]["train_error"] == 0 and 0.05 < result["last"]["test_error"] < 0.11
