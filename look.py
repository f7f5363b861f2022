"""Look at finished runs: their curves, what their networks take for what, and what they answer for your own pictures.

    python look.py runs/baseline runs/dropout-l2
    python look.py runs/baseline --image seven.png

What the test images show is there to be understood; who chooses a setting by it has no test images any more.
"""

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.metrics import confusion_matrix
from torch import nn

import data
from support.figures import reproducible_figures
from support.run import Row, RunError, identity_of, read_checkpoint, read_json, read_rows
from support.shell import errors_in_one_line, one_line, parse, replacing
from train import EVALUATION_BATCH, Config, best, build_model, read_config

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")  # Okabe and Ito 2008
STYLES = ("-", "--", ":", "-.")  # of the lines, once the colours are used up
MISTAKES = 24  # that are drawn
UNITS = 100  # whose weights are drawn
TYPICAL = 10_000  # images, which say how digits usually lie
WORKING_SIZE = 400  # pixels along the longer side of a user's picture, before it is made as small as the network's
FAINT = 0.02, 0.2  # part of the strongest ink that is none: on even paper, and on a photograph's
LEAST_CONTRAST = 0.06  # between black and white; what has less shows no digit


class PictureError(Exception):
    """A picture cannot be used; one line."""


@dataclass(frozen=True)
class Options:
    """Look at finished runs: curves, confusions, mistakes and weights; or, with --image, answers for your pictures."""

    runs: tyro.conf.Positional[tuple[str, ...]]  # folders of finished runs
    image: tuple[str, ...] = ()  # pictures of one digit each, PNG or JPEG, to answer for instead
    last: bool = False  # take the last weights, not those with the lowest validation cost
    out: str = "looks"  # folder for the figures; those of the same name are replaced


class Run(NamedTuple):
    """A finished run."""

    name: str  # no other one has it
    config: Config
    rows: list[Row]
    model: nn.Module  # in evaluation mode, on the CPU
    weights: str  # which these are, for a title


# --- reading ---------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[str], last: bool) -> tuple[list[Run], data.Dataset]:
    """The runs in `folders`, and the data set of all of them; RunError where there is no finished run."""
    paths = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    if not paths:
        raise RunError("no run is given; name finished runs before all options, such as: python look.py runs/baseline")
    configs = [read_config(path) for path in paths]
    digests = [read_json(path / "config.json").get("data_sha256") for path in paths]
    for path, digest in zip(paths, digests, strict=True):
        if not (path / "result.json").exists():
            raise RunError(f"{path}: is not over; wait for it, or go on with it: python train.py --resume {path}")
        if digest != digests[0]:
            raise RunError(f"{path}: learned from other data than {paths[0]}; look at one of them at a time")
    dataset = data.load(configs[0].data, configs[0].data_dir)
    if dataset.sha256 != digests[0]:
        raise RunError(f"{paths[0]}: its data are not the {dataset.name} of today; begin the run anew to look at it")
    runs: list[Run] = []
    for path, config in zip(paths, configs, strict=True):
        name = path.resolve().name
        while any(run.name == name for run in runs):  # runs of several --runs-dir
            name += "+"
        model, epoch = read_model(path, config, dataset, last)
        weights = f"{'last' if last else 'best'} weights, epoch {epoch}"
        runs.append(Run(name, config, read_rows(path), model, weights))
    return runs, dataset


def read_model(folder: Path, config: Config, dataset: data.Dataset, last: bool) -> tuple[nn.Module, int]:
    """The network of the run in `folder`, and after which epoch."""
    path, model = folder / ("last.pt" if last else "best.pt"), build_model(config, dataset).eval()
    checkpoint = read_checkpoint(path, identity_of(config, dataset, model))
    model.load_state_dict(checkpoint["model"])
    if not all(values.isfinite().all() for values in model.state_dict().values()):
        raise RunError(f"{path}: the weights became infinite or NaN; look at the best ones, without --last")
    return model, (checkpoint["progress"] if last else checkpoint)["epoch"]


@torch.no_grad()
def probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """What `model` answers for `images` (N, H, W): (N, classes), in float64, so that fewer round to 1."""
    return torch.cat([model(batch) for batch in images.split(EVALUATION_BATCH)]).double().softmax(dim=1).numpy()


# --- pictures of one's own -------------------------------------------------------------------------------------------


class Frame(NamedTuple):
    """How digits lie in the images of a data set, in pixels."""

    longest: int  # the longer side of a digit
    row: float  # of the centre of mass
    column: float


def read_picture(path: str, frame: Frame, height: int, width: int) -> np.ndarray:
    """The digit in a PNG or JPEG file as a network sees it, or a PictureError."""
    try:
        if not Path(path).is_file():  # opening a pipe would wait for ever
            raise PictureError("is no file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)  # a small file of very many pixels
            with Image.open(path, formats=("PNG", "JPEG")) as picture:
                if picture.format == "PNG" and picture.n_frames > 1:
                    raise PictureError("is animated")
                return centred(ink_of(picture), frame, height, width)
    except PictureError as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = "is neither PNG nor JPEG"
    except Exception as error:  # decoders fail in many ways
        reason = f"cannot be read ({type(error).__name__}: {one_line(error)[:100]})"
    raise PictureError(f"{path}: {reason}; give a PNG or JPEG of one digit, dark on light or light on dark")


def ink_of(picture: Image.Image) -> np.ndarray:
    """Where a picture differs from its paper, from 0 to 1: (h, w). The paper is what most of the border shows."""
    picture = ImageOps.exif_transpose(picture)  # a telephone turns its pictures by a note in the file
    if picture.mode.startswith(("I", "F")):  # more than 8 bits, which convert("L") would clip
        picture = Image.fromarray(np.asarray(picture, np.float32) / 65535)
    else:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        picture = Image.fromarray(np.asarray(Image.alpha_composite(paper, picture).convert("L"), np.float32) / 255)
    picture.thumbnail((WORKING_SIZE, WORKING_SIZE), Image.Resampling.BOX)
    grey = np.asarray(picture)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper = np.median(border)
    ink = paper - grey if paper > (grey.min() + grey.max()) / 2 else grey - paper  # dark on light, or MNIST's way
    if ink.max() < LEAST_CONTRAST:
        raise PictureError("is all of one grey")
    ink, shades = ink / ink.max(), np.median(abs(border - paper)) / ink.max()
    ink[ink < max(FAINT[bool(shades)], 4 * shades)] = 0
    return ink


def centred(ink: np.ndarray, frame: Frame, height: int, width: int) -> np.ndarray:
    """`ink` in an image (height, width), fitted into `frame`: the ratio of its sides is kept.

    So MNIST was made (the foot of yann.lecun.com/exdb/mnist): fitted into 20 x 20 pixels, and put into 28 x 28 so that
    the centre of mass is in the middle.
    """
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    box = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = min(frame.longest / max(box.size), width / box.width, height / box.height)
    size = [max(1, round(side * scale)) for side in box.size]
    digit = np.asarray(box.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    digit = digit / digit.max()  # a thin line grows pale when it is made small
    image = np.zeros((height, width), np.float32)
    corner = np.floor(np.array([frame.row, frame.column]) + 0.5 - centre_of_mass(digit[None])[0])
    row, column = np.clip(corner.astype(int), 0, np.subtract(image.shape, digit.shape))
    image[row : row + digit.shape[0], column : column + digit.shape[1]] = digit
    return image


def centre_of_mass(images: np.ndarray) -> np.ndarray:
    """Row and column of that of each of `images` (N, H, W): (N, 2), counted from 0."""
    mass = images / images.sum(axis=(1, 2), keepdims=True, dtype=float)
    return np.stack([mass.sum(axis=3 - axis) @ np.arange(images.shape[axis]) for axis in (1, 2)], axis=1)


def frame_of(images: np.ndarray) -> Frame:
    """How the digits in `images` (N, H, W) usually lie: in MNIST 20 pixels long, and around the pixel (14, 14)."""
    images = images[images.any(axis=(1, 2))]
    lengths = [side.shape[1] - side.argmax(1) - side[:, ::-1].argmax(1) for side in (images.any(2), images.any(1))]
    centre = np.round(2 * centre_of_mass(images).mean(axis=0)) / 2
    return Frame(int(np.median(np.maximum(*lengths))), *centre)


# --- figures ---------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A probability, which is never said to be 0 or 1."""
    return "> 99.99 %" if share > 0.9999 else "< 0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def heading(run: Run) -> str:
    return textwrap.fill(f"{run.name}, {run.weights}", 70)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` on a logarithmic axis, and 0."""
    steps = (1, 2, 5) if high < 1000 * low else (1,)
    return [0, *(n for n in (step * 10.0**power for power in range(-12, 12) for step in steps) if low <= n <= high)]


def draw_curves(runs: Sequence[Run]) -> Figure:
    """Cost and error of every split over the epochs, a line a run, with a star at the lowest validation cost."""
    splits = [split for split in data.SPLITS if all(f"loss/{split}" in run.rows[0] for run in runs)]
    figure, axes = plt.subplots(2, len(splits), figsize=(4.3 * len(splits), 7.6), layout="constrained", sharex=True)
    longest = max(row["epoch"] for run in runs for row in run.rows)
    for place, axis in np.ndenumerate(axes):
        kind, name, factor = (("loss", "cost in nats", 1), ("error", "error in %", 100))[place[0]]
        tag = f"{kind}/{splits[place[1]]}"
        for number, run in enumerate(runs):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
            epochs, values = zip(*((row["epoch"], factor * row[tag]) for row in run.rows), strict=True)
            axis.plot(epochs, values, style, color=colour, label=textwrap.fill(run.name, 60))
            chosen = run.rows.index(best(run.rows))
            star = {"markersize": 14, "markeredgecolor": "white", "zorder": 3, "clip_on": False}
            axis.plot(epochs[chosen], values[chosen], "*", color=colour, **star)
        shown = np.array([factor * row[tag] for run in runs for row in run.rows])
        low = min(shown[shown > 0], default=1)
        axis.set_yscale("symlog", linthresh=low)  # logarithmic from there on, with a place for 0
        axis.set_xscale("symlog", linthresh=1)
        for set_ticks, top, bottom in ((axis.set_xticks, longest, 1), (axis.set_yticks, shown.max(), low)):
            places = ticks(bottom, top)
            set_ticks(places, [f"{place:g}" for place in places])
        axis.set_xlim(left=-0.1)
        axis.set_ylim(0 if shown.min() == 0 else 0.9 * low, 1.3 * shown.max())
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.set_title(f"{name}, {splits[place[1]]}", fontsize=11)
    figure.supxlabel("epoch; star: lowest validation cost", fontsize=11)
    columns = 4 if max(len(run.name) for run in runs) < 30 else 1
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False)
    return figure


def draw_confusions(run: Run, labels: np.ndarray, answers: np.ndarray, classes: int) -> Figure:
    """What the network takes for what; the colour is that of mistakes alone, which would be lost beside the rest."""
    counts = confusion_matrix(labels, answers, labels=range(classes))
    mistakes = counts * (1 - np.eye(classes, dtype=int))
    size = max(6.5, 0.45 * classes)
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    shades = axis.imshow(mistakes, cmap="Blues", vmax=max(1, mistakes.max()))
    for (label, answer), count in np.ndenumerate(counts):
        if count:
            weight, dark = "bold" if label == answer else "normal", mistakes[label, answer] > 0.6 * mistakes.max()
            colour = "white" if dark else "black"
            axis.text(answer, label, count, ha="center", va="center", color=colour, fontweight=weight)
    axis.set(xticks=range(classes), yticks=range(classes), xlabel="answer", ylabel="label")
    figure.colorbar(shades, label="test images with a wrong answer", shrink=0.8)
    axis.set_title(f"{heading(run)}\n{mistakes.sum()} of {counts.sum()} test images wrong", fontsize=11)
    return figure


def surest_mistakes(labels: np.ndarray, answered: np.ndarray, count: int = MISTAKES) -> np.ndarray:
    """Which of the images with `labels` (N,) got a wrong answer, the most probable first, at most `count`.

    Args:
        answered: (N, classes) probabilities.
    """
    wrong = np.flatnonzero(answered.argmax(axis=1) != labels)
    return wrong[np.argsort(-answered[wrong].max(axis=1), kind="stable")][:count]


def draw_mistakes(run: Run, images: np.ndarray, labels: np.ndarray, answered: np.ndarray) -> Figure:
    """The most confident mistakes."""
    figure, axes = plt.subplots(4, MISTAKES // 4, figsize=(10, 8.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, surest_mistakes(labels, answered), strict=False):
        axis.imshow(images[index], cmap="gray_r")
        answer = answered[index].argmax()
        sure = percent(answered[index, answer])
        axis.set_title(f"a {labels[index]}, taken for {answer}\n{sure}, no. {index}", fontsize=9)
    figure.suptitle(f"{heading(run)}\nthe wrong answers with the highest probability on test images", fontsize=11)
    return figure


def draw_weights(run: Run, height: int, width: int) -> Figure:
    """The weights of the first layer as images, those of the units with the largest ones first."""
    weights = next(run.model.parameters()).detach().view(-1, height, width).numpy()
    strongest = np.argsort(-np.square(weights).sum(axis=(1, 2)), kind="stable")[:UNITS]
    framed = np.full((-(-len(strongest) // 10) * 10, height + 2, width + 2), np.nan)
    framed[: len(strongest), 1:-1, 1:-1] = weights[strongest]
    sheet = framed.reshape(-1, 10, height + 2, width + 2).swapaxes(1, 2).reshape(-1, 10 * (width + 2))
    limit = np.quantile(abs(weights), 0.999)
    figure, axis = plt.subplots(figsize=(9.6, 0.8 + 8.2 * sheet.shape[0] / sheet.shape[1]), layout="constrained")
    shades = axis.imshow(sheet, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axis.axis("off")
    figure.colorbar(shades, shrink=0.6, label="weight: red where ink excites the unit, blue where it inhibits")
    units = f"{len(strongest)} of {len(weights)} units of the first layer, largest weights first"
    axis.set_title(f"{heading(run)}\n{units}", fontsize=11)
    return figure


def draw_answers(
    runs: Sequence[Run], names: Sequence[str], images: np.ndarray, answers: Sequence[np.ndarray]
) -> Figure:
    """A line a picture: what the networks see, and the probabilities that each of them answers."""
    shape = {"figsize": (2.2 + 3 * len(runs), 2.2 * len(names) + 0.6), "width_ratios": [1.6] + [3] * len(runs)}
    figure, axes = plt.subplots(len(names), 1 + len(runs), layout="constrained", squeeze=False, **shape)
    for line, (name, image) in enumerate(zip(names, images, strict=True)):
        axes[line, 0].imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axes[line, 0].set(xticks=[], yticks=[])
        axes[line, 0].set_title(textwrap.fill(Path(name).name, 22), fontsize=9)
        for axis, run, answered in zip(axes[line, 1:], runs, answers, strict=True):
            colours = [COLOURS[1] if p == answered[line].max() else COLOURS[0] for p in answered[line]]
            axis.bar(range(len(colours)), answered[line], color=colours)
            axis.set(xticks=range(len(colours)), ylim=(0, 1.05))
            axis.set_title(f"{answered[line].argmax()}: {percent(answered[line].max())}", fontsize=10)
            if line == len(names) - 1:
                axis.set_xlabel(textwrap.fill(f"{run.name}, {run.weights}", 38), fontsize=9)
    return figure


# --- the command line ------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=120)
    print(f"  {path}")


def look(runs: Sequence[Run], dataset: data.Dataset, out: Path) -> None:
    """Curves of all runs, and for each what it answers on the test images."""
    print("costs and errors of all runs")
    save(draw_curves(runs), out / "curves.png")
    images, labels = data.split_tensors(dataset, "test", 0, torch.device("cpu"))
    for run in runs:
        answered, truth = probabilities(run.model, images), labels.numpy()
        answers = answered.argmax(axis=1)
        print(f"{run.name}, {run.weights}: {(answers != truth).sum()} of {len(truth)} test images wrong")
        stem = f"{run.name}-{run.weights.split()[0]}"
        save(draw_confusions(run, truth, answers, dataset.classes), out / f"{stem}-confusions.png")
        save(draw_mistakes(run, images.numpy(), truth, answered), out / f"{stem}-mistakes.png")
        save(draw_weights(run, *images.shape[1:]), out / f"{stem}-weights.png")


def answer(runs: Sequence[Run], dataset: data.Dataset, pictures: Sequence[str], out: Path) -> None:
    """What the networks of all runs answer for the user's own pictures."""
    frame = frame_of(dataset.train_images[:TYPICAL])
    seen = np.stack([read_picture(path, frame, *dataset.train_images.shape[1:]) for path in pictures])
    answers = [probabilities(run.model, torch.from_numpy(seen)) for run in runs]
    for line, path in enumerate(pictures):
        print(path)
        for run, answered in zip(runs, answers, strict=True):
            print(f"  {run.name}, {run.weights}: {answered[line].argmax()}")
            print("    in %:" + "".join(f"  {digit}: {100 * p:.1f}" for digit, p in enumerate(answered[line])))
    print("what the networks saw, and answered")
    save(draw_answers(runs, pictures, seen, answers), out / "answers.png")


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError, PictureError), reproducible_figures():
        options = parse(Options, argv)
        plt.rcParams.update({"text.parse_math": False, "figure.max_open_warning": 0})  # a $ in a name is a $
        runs, dataset = read_runs(options.runs, options.last)
        if options.image:
            answer(runs, dataset, options.image, Path(options.out))
        else:
            look(runs, dataset, Path(options.out))
        if plt.get_backend().lower() != "agg":  # there is a display
            plt.show()


if __name__ == "__main__":
    main()
