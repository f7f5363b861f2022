import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import data
import look
from look import PictureError, centred, frame_of, ink_of, read_picture, read_runs, surest_mistakes
from train import Config, train

matplotlib.use("agg")  # no windows, whatever the machine has

MNIST = look.Frame(20, 14, 14)


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run on digits."""
    config = Config(data="digits", epochs=20, evaluations=5, histograms=0, batch_size=20, dropout=0.1, norm="batch")
    folder = tmp_path_factory.mktemp("runs") / "a"
    train(config, folder, quiet=True)
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


def refusal(capfd, *arguments):
    """The one line that look.py ends with."""
    with pytest.raises(SystemExit) as ended:
        look.main([str(argument) for argument in arguments])
    print(ended.value.code if isinstance(ended.value.code, str) else "")
    out, err = capfd.readouterr()
    line = (out + err).strip()
    assert line.startswith("error: ") and "\n" not in line
    return line


# --- figures


def test_all_pictures_of_two_runs(run, finished, tmp_path, capfd):
    shutil.move(run, run.with_name("b $x"))
    look.main([str(finished), str(run.with_name("b $x")), "--out", str(tmp_path / "out")])
    figures = {path.name for path in (tmp_path / "out").iterdir()}
    kinds = ("confusions", "mistakes", "weights")
    assert figures == {"curves.png"} | {f"{name}-best-{kind}.png" for name in ("a", "b $x") for kind in kinds}
    assert all(min(Image.open(tmp_path / "out" / name).size) > 500 for name in figures)
    said = capfd.readouterr().out
    assert all(name in said for name in figures)


@pytest.mark.parametrize("weights", ["best", "last"])
def test_the_weights_are_those_that_it_says(weights, finished, tmp_path, capfd):
    look.main([str(finished), "--out", str(tmp_path), *(["--last"] if weights == "last" else [])])
    row = json.loads((finished / "result.json").read_text())[weights]
    wrong = round(row["error/test"] * 360)
    assert f"a, {weights} weights, epoch {row['epoch']}: {wrong} of 360 test images wrong" in capfd.readouterr().out


def test_runs_of_one_name_and_a_run_that_is_named_twice(run, finished):
    runs, _ = read_runs([str(run), str(finished), f"{run}/"], last=False)
    assert [one.name for one in runs] == ["a", "a+"]


def test_curves_show_every_measurement_and_mark_the_best(finished):
    runs, _ = read_runs([str(finished)], last=False)
    best = json.loads((finished / "result.json").read_text())["best"]
    for axis, (kind, factor) in zip(look.draw_curves(runs).axes, [("loss", 1)] * 3 + [("error", 100)] * 3, strict=True):
        split = axis.get_title().split()[-1]
        curve, star = axis.lines
        assert curve.get_ydata().tolist() == [factor * row[f"{kind}/{split}"] for row in runs[0].rows]
        assert star.get_xydata().tolist() == [[best["epoch"], factor * best[f"{kind}/{split}"]]]
        top, bottom = max(curve.get_ydata()), min(curve.get_ydata())
        assert axis.get_ylim()[0] <= bottom and top <= axis.get_ylim()[1]


def test_confusions_are_all_test_images(finished):
    (run,), dataset = read_runs([str(finished)], last=False)
    images, labels = data.split_tensors(dataset, "test", 0, torch.device("cpu"))
    answers = look.probabilities(run.model, images).argmax(axis=1)
    axis = look.draw_confusions(run, labels.numpy(), answers, dataset.classes).axes[0]
    counts = np.zeros((10, 10), int)
    for text in axis.texts:
        answer, label = text.get_position()
        counts[label, answer] = int(text.get_text())
    assert counts.sum() == 360 and (counts.sum(axis=1) == np.bincount(labels)).all()
    assert counts.trace() == (answers == labels.numpy()).sum()


def test_most_confident_mistakes_are_mistakes_and_sorted():
    generator = np.random.default_rng(0)
    answered, labels = generator.dirichlet(np.ones(10), 500), generator.integers(0, 10, 500)
    chosen = surest_mistakes(labels, answered, 24)
    probability = answered.max(axis=1)
    wrong = answered.argmax(axis=1) != labels
    assert wrong[chosen].all() and (np.diff(probability[chosen]) <= 0).all()
    assert sorted(probability[chosen]) == sorted(probability[wrong])[-24:]
    assert len(surest_mistakes(answered.argmax(axis=1), answered)) == 0


# --- pictures of one's own


def test_the_preparation_is_mnist_s_own(mnist):
    """What was prepared once, as MNIST was, is not changed when it is prepared again."""
    dataset = data.load("mnist")
    assert frame_of(dataset.train_images) == MNIST
    images = dataset.test_images[:300]
    again = np.stack([centred(ink_of(Image.fromarray(image)), MNIST, 28, 28) for image in images])
    assert (abs(again - images / 255).max(axis=(1, 2)) < 0.02).mean() > 0.98


@pytest.mark.parametrize("size", [(300, 200), (1200, 3000)])
def test_fitted_and_centred_by_mass(size):
    image = centred(ink_of(seven(size=size)), MNIST, 28, 28)
    rows, columns = (np.flatnonzero((image > 0.1).any(axis=axis)) for axis in (1, 0))
    assert image.shape == (28, 28) and image.dtype == np.float32 and image.max() == 1
    assert 19 <= np.ptp(rows) + 1 <= 20 and 12 <= np.ptp(columns) + 1 <= 15  # 139 : 94 pixels
    mass = image / image.sum()
    assert (mass.sum(1) * np.arange(28)).sum() == pytest.approx(14, abs=0.51) or rows[-1] == 27
    assert (mass.sum(0) * np.arange(28)).sum() == pytest.approx(14, abs=0.51)


def test_a_digit_never_leaves_an_image_that_is_not_square():
    image = centred(ink_of(seven()), look.Frame(30, 5, 15), 10, 30)
    assert image.shape == (10, 30) and image[0].any() and image[-1].any()


def test_inverted_only_if_needed():
    wanted = centred(ink_of(seven()), MNIST, 28, 28)
    same = [
        seven(paper=0, ink=255),
        seven(paper=(255, 255, 255), ink=(0, 0, 0), mode="RGB"),
        seven(paper=(0, 0, 0, 0), ink=(0, 0, 0, 255), mode="RGBA"),  # transparent paper
        seven(paper=200, ink=90),
        Image.fromarray(np.asarray(seven(), np.uint16) * 257),
    ]
    for picture in same:
        assert abs(centred(ink_of(picture), MNIST, 28, 28) - wanted).max() < 0.01


def test_shades_and_grain_of_paper_are_no_ink():
    lit = np.asarray(seven(paper=210, ink=30), float) * np.linspace(0.8, 1, 300)
    grain = np.random.default_rng(0).normal(0, 6, lit.shape)
    picture = Image.fromarray((lit + grain).clip(0, 255).astype(np.uint8))
    wanted = centred(ink_of(seven()), MNIST, 28, 28)
    found = centred(ink_of(picture), MNIST, 28, 28)
    assert abs(found - wanted).mean() < 0.05 and np.corrcoef(found.flat, wanted.flat)[0, 1] > 0.9


def test_a_drawn_digit_is_answered(mnist, tmp_path, capfd):
    train(replace(mnist, epochs=15, evaluations=2, histograms=0), tmp_path / "run", quiet=True)
    seven().save(tmp_path / "seven.png")
    look.main([str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--image", str(tmp_path / "seven.png")])
    said = capfd.readouterr().out
    assert re.search(r"run, best weights, epoch 15: 7\n", said)
    found = dict(re.findall(r"(\d): ([\d.]+)", said.split("in %:")[1].split("\n")[0]))
    assert list(found) == list("0123456789") and sum(map(float, found.values())) == pytest.approx(100, abs=0.6)
    assert (tmp_path / "out" / "answers.png").exists() and len(list((tmp_path / "out").iterdir())) == 1


def test_pictures_of_another_size_of_images(finished, tmp_path):
    """8 x 8 pixels: training images, enlarged and dark on light, get the answers that they get as they are."""
    (run,), dataset = read_runs([str(finished)], last=False)
    images = dataset.train_images[:40]
    for index, image in enumerate(images):
        large = Image.fromarray(255 - 15 * image).resize((160, 160), Image.Resampling.NEAREST)
        Image.fromarray(np.pad(large, 40, constant_values=255)).save(tmp_path / f"{index}.png")
    frame = frame_of(dataset.train_images)
    seen = np.stack([read_picture(str(tmp_path / f"{index}.png"), frame, 8, 8) for index in range(40)])
    asked = [look.probabilities(run.model, torch.tensor(x, dtype=torch.float32)) for x in (seen, images / 16)]
    assert frame == (8, 3.5, 3.5) and seen.shape == (40, 8, 8)
    assert (asked[0].argmax(axis=1) == asked[1].argmax(axis=1)).mean() > 0.8


# --- errors


def pictures(folder):
    seven().save(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(good[: len(good) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (60, 60), "grey").save(folder / "grey.png")
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    frames = [seven(ink=ink) for ink in (0, 90)]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "other.gif")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut.png", "cannot be read"),
        ("text.png", "neither PNG nor JPEG"),
        ("empty.png", "neither PNG nor JPEG"),
        ("dot.png", "all of one grey"),
        ("grey.png", "all of one grey"),
        ("huge.png", "DecompressionBomb"),
        ("animated.png", "animated"),
        ("other.gif", "neither PNG nor JPEG"),
        ("none.png", "no file"),
        ("", "no file"),
    ],
)
def test_pictures_that_cannot_be_used(name, words, finished, tmp_path, capfd):
    pictures(tmp_path)
    with pytest.raises(PictureError, match=words):
        read_picture(str(tmp_path / name), MNIST, 28, 28)
    line = refusal(capfd, finished, "--out", tmp_path / "out", "--image", tmp_path / "good.png", tmp_path / name)
    assert words in line and str(tmp_path / name) in line and "give a PNG or JPEG" in line
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(run, finished, tmp_path, capfd):
    assert "no run is given" in refusal(capfd)
    assert "give the folder of a run" in refusal(capfd, tmp_path / "none")
    other = tmp_path / "other"
    train(Config(data="digits", epochs=2, evaluations=1, histograms=0), other, quiet=True)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"data_sha256": "0" * 64}))
    assert "other data" in refusal(capfd, finished, other)
    assert "begin the run anew" in refusal(capfd, other)
    (run / "result.json").unlink()
    assert f"go on with it: python train.py --resume {run}" in refusal(capfd, finished, run)
    assert "no such option" in refusal(capfd, finished, "--lats")


@pytest.mark.parametrize("spoil", ["foreign", "missing", "damaged", "nan", "model of one's own"])
def test_weights_that_cannot_be_used(spoil, run, tmp_path, capfd):
    path = run / "last.pt"
    checkpoint = torch.load(path, weights_only=True)
    if spoil == "foreign":
        torch.save({"model": Path("x"), "progress": {"epoch": 1}}, path)  # what only unpickling by code could read
    elif spoil == "missing":
        path.unlink()
    elif spoil == "damaged":
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 3, len(content) // 3 + 200):  # more than the padding between two tensors
            content[place] ^= 255
        path.write_bytes(content)
    elif spoil == "nan":
        checkpoint["model"]["linears.0.weight"][0, 0] = torch.nan
        torch.save(checkpoint, path)
    else:
        checkpoint["model"] = torch.nn.Conv2d(1, 1, 3).state_dict()
        torch.save(checkpoint, path)
    line = refusal(capfd, run, "--last", "--out", tmp_path / "out")
    assert str(path) in line and ("without --last" if spoil == "nan" else "damaged or foreign") in line
    assert not (tmp_path / "out").exists()
