import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers import Cut, cut_at, refused
from PIL import Image, ImageDraw
from torch import nn

import data
import look
from benchmarks import pictures
from look import read_runs
from support.pictures import Frame, PictureError, centred, frame_of, ink_of, read_picture
from support.run import RunError
from train import Config, train

matplotlib.use("agg")  # no windows, whatever the machine has

MNIST = Frame(20, 14, 14)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run on digits."""
    config = Config(data="digits", device="cpu", epochs=30, evaluations=8, histograms=0, batch_size=20, norm="batch")
    folder = tmp_path_factory.mktemp("runs") / "a"
    result = train(replace(config, dropout=0.1, lr=2e-2), folder, quiet=True)
    assert result["best"]["epoch"] < result["last"]["epoch"]  # two moments that can be told apart
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run, to be spoiled."""
    return Path(shutil.copytree(finished, tmp_path / "a"))


def seven(paper=255, ink=0, size=(300, 200), mode="L"):
    """A 7 that is neither in the middle nor of any usual size."""
    picture = Image.new(mode, size, paper)
    ImageDraw.Draw(picture).line([(30, 40), (105, 40), (60, 165)], fill=ink, width=14, joint="curve")
    return picture


# --- figures


@pytest.mark.parametrize("moment", ["best", "last"])
def test_figures_table_and_weights_are_those_of_the_moment(moment, run, finished, tmp_path, capfd):
    """Of two runs of one name, from two folders."""
    named = {"best": "lowest validation cost", "last": "last epoch"}[moment]
    look.main([str(finished), str(run), "--out", str(tmp_path / "out"), *["--best"] * (moment == "best")])
    row, said = json.loads((finished / "result.json").read_text())[moment], capfd.readouterr().out
    kinds = ("confusions", "mistakes")
    wanted = {"question1.png", *(f"{name}-{moment}-{kind}.png" for name in ("a", "a+") for kind in kinds)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted
    assert all(name in said and min(Image.open(tmp_path / "out" / name).size) > 500 for name in wanted)
    assert f"a, {moment} weights, epoch {row['epoch']}: {round(row['error/test'] * 360)} of 360 test images" in said
    line = next(line for line in said.splitlines() if f"| {named}" in line)
    assert f"{row['loss/val']:.4f}" in line and f"{row['error/test']:.2%}" in line and "dropout 0.1" in line


def test_question_1_shows_what_was_measured(finished):
    runs, dataset = read_runs([str(finished)])
    images, _ = data.split_tensors(dataset, "test", 0, torch.device("cpu"))
    costs, weights, gradients, doubt = look.draw_question(runs, images).axes
    for line, split in zip(costs.lines, data.SPLITS, strict=False):
        assert list(line.get_ydata()) == [row[f"loss/{split}"] for row in runs[0].rows]
    assert [line.get_label() for line in gradients.lines] == ["linear1", "linear2", "linear3", "linear4"]
    assert list(gradients.lines[0].get_xdata()[:2]) == [row["epoch"] for row in runs[0].rows[:2]]
    assert len(weights.patches) == 8
    means = [float(text.get_text().split()[-1]) for text in doubt.get_legend().get_texts()]
    measured = [runs[0].rows[moment]["mean_entropy/test"] for moment in (0, -1)]  # untrained, and now
    assert means == pytest.approx(measured, abs=6e-4)


def test_the_surest_mistakes_are_mistakes_and_sorted(finished):
    (run,), dataset = read_runs([str(finished)])
    answered = look.probabilities(run.model, torch.from_numpy(dataset.test_images / np.float32(255)))
    labels = dataset.test_labels
    figure = look.draw_mistakes(run, dataset.test_images, labels, answered)
    shown = [int(title.split("no. ")[1]) for axis in figure.axes if (title := axis.get_title())]
    wrong, sure = answered.argmax(axis=1) != labels, answered.max(axis=1)
    assert 5 < len(shown) == min(24, wrong.sum()) and wrong[shown].all()
    assert list(sure[shown]) == sorted(sure[wrong], reverse=True)[:24]


# --- runs that cannot be drawn


def test_what_cannot_be_drawn_is_skipped_in_a_line_and_the_rest_is_drawn(run, finished, tmp_path, capfd):
    config = Config(data="digits", device="cpu", epochs=2, evaluations=1, histograms=0)
    train(config, tmp_path / "own", quiet=True, make_model=lambda *_: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(Cut):
        train(config, tmp_path / "cut", quiet=True, on_evaluation=cut_at(0))
    (run / "last.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    places = [str(tmp_path / "own"), str(tmp_path / "cut"), str(tmp_path / "none"), str(run)]
    runs, _ = read_runs([*places, str(finished)])
    assert [one.title for one in runs] == ["a, last weights, epoch 30"]
    words = ("network of your own", "is not over", "give the folder of a run", "damaged")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("skipped: ")]
    for place, line, word in zip(places, lines, words, strict=True):
        assert place in line and word in line
        with pytest.raises(RunError, match=word):
            read_runs([place])
    with pytest.raises(RunError, match="none of these runs"):
        read_runs(places)
    assert "no run is given" in refused(capfd, look.main)[1]


def test_weights_of_another_run_and_weights_that_diverged(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"seed": 5}))
    with pytest.raises(RunError, match=r"last.pt: .*seed"):
        read_runs([str(run)])
    (run / "config.json").write_text(json.dumps(config))
    checkpoint = torch.load(run / "last.pt", weights_only=True)
    checkpoint["model"]["linears.0.weight"][0, 0] = torch.nan
    torch.save(checkpoint, run / "last.pt")
    with pytest.raises(RunError, match="with --best"):
        read_runs([str(run)])


# --- pictures of one's own


def found_in(circumstance, path):
    """What is found of a 7 that a pen drew."""
    stroke, rng = np.asarray(seven(0, 255).crop((10, 20, 130, 185)).resize((28, 28))), np.random.default_rng(3)
    circumstance(pictures.Scene(pictures.drawn(stroke, rng), rng)).save(path)
    return read_picture(str(path), MNIST, 28, 28)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return found_in(pictures.CIRCUMSTANCES["clean"], tmp_path_factory.mktemp("clean") / "7.png")


@pytest.mark.parametrize("name", [name for name in pictures.CIRCUMSTANCES if "two digits" not in name])
def test_a_digit_is_found_in_every_circumstance(name, clean, tmp_path):
    seen = found_in(pictures.CIRCUMSTANCES[name], tmp_path / "7.png")
    places = [np.roll(seen, (row, column), axis=(0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    assert max(np.corrcoef(clean.flat, one.flat)[0, 1] for one in places) > 0.9  # centred a pixel away, it is as good


def test_the_table_of_circumstances(finished, capsys, monkeypatch):
    chosen = ("clean", "shadow of a hand 0.75, hard", "two digits, far apart")
    monkeypatch.setattr(pictures, "CIRCUMSTANCES", {name: pictures.CIRCUMSTANCES[name] for name in chosen})
    pictures.main([str(finished), "--digits", "3"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == list(chosen)
    assert all(sum(map(int, re.findall(r" (\d+) \|", line))) == 3 for line in lines)
    assert lines[2].endswith("| 0 | 0 | 3 |")


def test_the_preparation_is_mnist_s_own(mnist):
    """What was prepared once, as MNIST was, is not changed when it is prepared again."""
    dataset = data.load("mnist")
    assert frame_of(dataset.train_images) == MNIST
    images = dataset.test_images[27:77]  # the one before touches the edge
    again = np.stack([centred(ink_of(Image.fromarray(image)), MNIST, 28, 28) for image in images])
    assert (abs(again - images / 255).max(axis=(1, 2)) < 0.02).mean() > 0.95


@pytest.mark.parametrize("size", [(300, 200), (1200, 3000)])
def test_fitted_and_centred_by_mass(size):
    image = centred(ink_of(seven(size=size)), MNIST, 28, 28)
    rows, columns = (np.flatnonzero((image > 0.1).any(axis=axis)) for axis in (1, 0))
    assert image.shape == (28, 28) and image.dtype == np.float32 and image.max() == 1
    assert 19 <= np.ptp(rows) + 1 <= 20 and 12 <= np.ptp(columns) + 1 <= 15  # 139 : 94 pixels
    mass = image / image.sum()
    assert (mass.sum(1) * np.arange(28)).sum() == pytest.approx(14, abs=0.51) or rows[-1] == 27
    assert (mass.sum(0) * np.arange(28)).sum() == pytest.approx(14, abs=0.51)


def test_colours_transparency_and_16_bits():
    wanted = centred(ink_of(seven()), MNIST, 28, 28)
    white_on_transparent = seven(paper=(255, 255, 255, 0), ink=(255, 255, 200, 255), mode="RGBA")
    deep = Image.fromarray(np.asarray(seven(), np.uint16) * 257)
    for picture in (seven(paper=(255, 255, 255), ink=(0, 0, 0), mode="RGB"), white_on_transparent, deep):
        assert abs(centred(ink_of(picture), MNIST, 28, 28) - wanted).max() < 0.02


def test_a_drawn_digit_is_answered(finished, tmp_path, capfd):
    seven().save(tmp_path / "seven.png")
    look.main([str(finished), "--out", str(tmp_path / "out"), "--image", str(tmp_path / "seven.png")])
    said = capfd.readouterr().out
    assert re.search(r"a, last weights, epoch 30: 7\n", said)
    found = dict(re.findall(r"(\d): ([\d.]+)", said.split("in %:")[1].split("\n")[0]))
    assert list(found) == list("0123456789") and sum(map(float, found.values())) == pytest.approx(100, abs=0.6)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["answers.png"]


def test_pictures_that_cannot_be_used(finished, tmp_path, capfd):
    seven().save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:400])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (60, 60), "grey").save(tmp_path / "grey.png")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    seven().crop((30, 0, 120, 200)).resize((300, 300)).crop((0, 70, 300, 220)).save(tmp_path / "touching.png")
    for name, words in {
        "cut.png": "damaged or cut off",
        "text.png": "neither PNG nor JPEG",
        "grey.png": "no digit that stands free",
        "touching.png": "no digit that stands free",
        "huge.png": "too many pixels; make it smaller",
        "none.png": "No such file",
    }.items():
        with pytest.raises(PictureError, match=f"{name}: .*{words}"):
            read_picture(str(tmp_path / name), MNIST, 28, 28)
    words = (finished, "--out", tmp_path / "out", "--image", tmp_path / "good.png", tmp_path / "cut.png")
    assert str(tmp_path / "cut.png") in refused(capfd, look.main, *words)[1]
    assert not (tmp_path / "out").exists()
