"""Look at finished runs: the class's Question 1 in one figure, mistakes, weights, and answers for your own pictures.

    python look.py runs/recipe runs/dropout-l2
    python look.py runs/recipe --image seven.png

What the test images show is there to be understood; who chooses a setting by it has no test images any more.
"""

import itertools
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import data
import observe
from model import entropy
from support.figures import PALETTE, reproducible_figures
from support.pictures import Frame, PictureError, frame_of, read_picture
from support.report import markdown_table
from support.run import Row, RunError, differences, identity_of, read_checkpoint, read_json, read_rows
from support.shell import Folder, as_text, checked, errors_in_one_line, parse, replacing
from train import Config, best, build_model, predict, random_streams, read_config

COLOURS = tuple(PALETTE[place] for place in (6, 2, 3, 8, 4, 7, 5, 9))
MISTAKES = 24  # that are drawn
UNITS = 100  # whose weights are drawn
TYPICAL = 10_000  # images, which say how digits usually lie


@checked
class LookOptions:
    """Look at finished runs: Question 1, mistakes and weights; or, with --image, answers for pictures."""

    runs: tyro.conf.Positional[tuple[Folder, ...]]  # folders of finished runs
    image: tuple[Folder, ...] = ()  # pictures of one digit each, PNG or JPEG, to answer for instead
    best: bool = False  # take the weights with the lowest validation cost, not the last ones
    out: Folder = "looks"  # folder for the figures; those of the same name are replaced
    format: Literal["png", "pdf"] = "png"  # of the figures


class Run(NamedTuple):
    """A finished run."""

    name: str  # no other one has it
    config: Config
    rows: list[Row]
    untrained: nn.Module  # as it was before the first update
    model: nn.Module  # in evaluation mode, on the CPU
    weights: str  # which these are, for a title
    gradients: dict[str, tuple[list[float], list[float]]]  # by layer: epochs, and the rms of its input gradient then

    @property
    def heading(self) -> str:
        return textwrap.fill(f"{self.name}, {self.weights}", 70)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[str], best_weights: bool = False) -> tuple[list[Run], data.Dataset]:
    """The finished runs in `folders` and their data set; says in a line which cannot be drawn; RunError if none can."""
    paths = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    if not paths:
        raise RunError("no run is given; name finished runs before all options, such as: python look.py runs/recipe")
    runs: list[Run] = []
    found: list[data.Dataset] = []
    for path in paths:
        try:
            config = read_config(path)
            if not (path / "result.json").exists():
                raise RunError(f"{path}: is not over; wait for it, or go on with it: python train.py --resume {path}")
            dataset = data.load(config.data, config.data_dir)
            if found and dataset.sha256 != found[0].sha256:
                raise RunError(f"{path}: learned from other data than {paths[0]}; look at one of them at a time")
            name = path.resolve().name
            while any(run.name == name for run in runs):  # runs of several --runs-dir
                name += "+"
            runs.append(read_run(path, name, config, dataset, best_weights))
            found.append(dataset)
        except (RunError, data.DataError) as error:
            if len(paths) == 1:
                raise
            print(f"skipped: {error}", file=sys.stderr)
    if not runs:
        raise RunError("none of these runs can be drawn; name the folder of a finished run of train.py")
    return runs, found[0]


def read_run(path: Path, name: str, config: Config, dataset: data.Dataset, best_weights: bool) -> Run:
    """The run in `path`; RunError if it is damaged, or if its network is none of train.py's."""
    torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
    untrained, model = build_model(config, dataset).eval(), build_model(config, dataset).eval()
    identity, begun = identity_of(config, dataset, model), read_json(path / "config.json")
    if begun.get("network") != identity["network"]:
        raise RunError(f"{path}: has a network of your own; look.py draws those of train.py")
    if begun.get("data_sha256") != dataset.sha256:
        raise RunError(f"{path}: its data are not the {dataset.name} of today; begin the run anew to look at it")
    file = path / ("best.pt" if best_weights else "last.pt")
    checkpoint = read_checkpoint(file, identity)
    model.load_state_dict(checkpoint["model"])
    if not all(values.isfinite().all() for values in model.state_dict().values()):
        raise RunError(f"{file}: the weights became infinite or NaN; look at the best ones, with --best")
    rows = read_rows(path)
    events = EventAccumulator(str(path), {"scalars": 0})
    events.Reload()
    per_step = rows[-1]["epoch"] / max(rows[-1]["step"], 1)
    gradients = {
        tag.split("/")[1]: ([point.step * per_step for point in points], [point.value for point in points])
        for tag in events.Tags()["scalars"]
        if tag.startswith("gradient_rms/") and (points := events.Scalars(tag))
    }
    epoch = checkpoint.get("progress", checkpoint)["epoch"]
    weights = f"{'best' if best_weights else 'last'} weights, epoch {epoch}"
    return Run(name, config, rows, untrained, model, weights, gradients)


def probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """What `model` answers for `images` (N, H, W): (N, classes), in float64, so that fewer round to 1."""
    return predict(model, images).double().softmax(dim=1).numpy()


# --- figures ---------------------------------------------------------------------------------------------------------


def as_percent(share: float) -> str:
    """A probability, which is never said to be 0 or 1."""
    return "> 99.99 %" if share > 0.9999 else "< 0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def overview(runs: Sequence[Run]) -> list[str]:
    """A table of what the runs change in the class's recipe, and of cost and error of both moments, in Markdown."""
    header = [
        "run",
        "settings",
        "moment",
        "epoch",
        *(f"{split} {what}" for split in data.SPLITS for what in ("cost", "error")),
    ]
    lines = []
    for run in runs:
        settings = ", ".join(f"{name} {as_text(value)}" for name, value in differences(run.config).items())
        for moment, row in (("lowest validation cost", best(run.rows)), ("last epoch", run.rows[-1])):
            cells = [run.name, settings or "the class's recipe", moment, f"{row['epoch']:g}"]
            for split in data.SPLITS:
                measured = f"loss/{split}" in row
                cells += [f"{row[f'loss/{split}']:.4f}", f"{row[f'error/{split}']:.2%}"] if measured else ["", ""]
            lines.append(cells)
    return markdown_table(header, lines)


def draw_question(runs: Sequence[Run], images: torch.Tensor) -> Figure:
    """The class's Question 1, a row a run: costs, weights, input gradients, and entropy of the output for `images`."""
    figure, axes = plt.subplots(
        len(runs),
        4,
        figsize=(17, 3.2 * len(runs) + 0.6),
        layout="constrained",
        squeeze=False,
        sharex="col",
        sharey="col",
    )
    for run, (costs, weights, gradients, doubt) in zip(runs, axes, strict=True):
        for colour, split in zip(COLOURS, data.SPLITS, strict=False):
            if f"loss/{split}" in run.rows[0]:
                values = [row[f"loss/{split}"] for row in run.rows]
                costs.plot([row["epoch"] for row in run.rows], values, color=colour, label=split)
        chosen, star = best(run.rows), {"markersize": 13, "color": COLOURS[1], "zorder": 3}
        costs.plot(chosen["epoch"], chosen["loss/val"], "*", label="lowest validation cost", **star)
        costs.set_ylabel(f"{textwrap.fill(run.name, 30)}\n{run.weights}", fontsize=11, fontweight="bold")
        for model, style in ((run.untrained, ":"), (run.model, "-")):
            for colour, (name, layer) in zip(itertools.cycle(COLOURS), observe.layers(model).items()):
                heights, edges = np.histogram(layer.weight.detach().numpy(), 50, density=True)
                weights.stairs(heights, edges, color=colour, linestyle=style, label=name if style == "-" else None)
        for colour, (name, points) in zip(itertools.cycle(COLOURS), run.gradients.items()):
            gradients.plot(*points, color=colour, label=name)
        if not run.gradients:
            gradients.text(0.5, 0.5, "no event file", ha="center", transform=gradients.transAxes)
        logits = predict(run.untrained, images), predict(run.model, images)
        bins = np.linspace(0, np.log(logits[0].shape[1]), 41)
        for one, colour, when in zip(logits, ("grey", COLOURS[0]), ("before training", "now"), strict=True):
            values = entropy(one).numpy().clip(0, bins[-1])
            shares, label = np.histogram(values, bins)[0] / len(values), f"{when}, mean {values.mean():.3f}"
            doubt.stairs(shares, bins, color=colour, fill=True, alpha=0.6, label=label)
        doubt.legend(loc="upper center", fontsize=9)
    titles = (
        "cost in nats",
        "weights: dotted before, solid now",
        "rms of the gradient at a layer's input",
        "entropy, test",
    )
    labels = "epoch", "weight", "epoch", "entropy of the output in nats"
    for column, title, label in zip(axes.T, titles, labels, strict=True):
        column[0].set_title(title, fontsize=12)
        column[-1].set_xlabel(label)
        if label == "epoch":
            last = max(run.rows[-1]["epoch"] for run in runs)
            column[0].set_xscale("symlog", linthresh=1)
            column[0].set_xlim(0, 1.2 * last)
            column[0].set_xticks([0, *(10**power for power in range(7) if 10**power <= last)], minor=False)
        for axis in column:
            axis.set_yscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.tick_params(labelbottom=True)
    axes[0, 1].set_ylim(bottom=1e-2)
    axes[0, 3].set_ylim(top=30)
    for axis in axes[0, :3]:
        axis.legend(fontsize=9)
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
    axis.set_title(f"{run.heading}\n{mistakes.sum()} of {counts.sum()} test images wrong", fontsize=11)
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
        sure = as_percent(answered[index, answer])
        axis.set_title(f"a {labels[index]}, taken for {answer}\n{sure}, no. {index}", fontsize=9)
    figure.suptitle(f"{run.heading}\nthe wrong answers with the highest probability on test images", fontsize=11)
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
    axis.set_title(f"{run.heading}\n{units}", fontsize=11)
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
            axis.set_title(f"{answered[line].argmax()}: {as_percent(answered[line].max())}", fontsize=10)
            if line == len(names) - 1:
                axis.set_xlabel(textwrap.fill(f"{run.name}, {run.weights}", 38), fontsize=9)
    return figure


# --- the command line ------------------------------------------------------------------------------------------------


def save(figure: Figure, path: Path, kind: str) -> None:
    path = path.with_name(f"{path.name}.{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as beside:
        figure.savefig(beside, format=kind, dpi=120)
    print(f"  {path}")


def look(runs: Sequence[Run], dataset: data.Dataset, out: Path, kind: str) -> None:
    """Question 1 for all runs, and for each what it answers on the test images."""
    print("\n".join(overview(runs)))
    images, labels = data.split_tensors(dataset, "test", 0, torch.device("cpu"))
    save(draw_question(runs, images), out / "question1", kind)
    for run in runs:
        answered, truth = probabilities(run.model, images), labels.numpy()
        print(
            f"{run.name}, {run.weights}: {(answered.argmax(axis=1) != truth).sum()} of {len(truth)} test images wrong"
        )
        stem = f"{run.name}-{run.weights.split()[0]}"
        save(draw_confusions(run, truth, answered.argmax(axis=1), dataset.classes), out / f"{stem}-confusions", kind)
        save(draw_mistakes(run, images.numpy(), truth, answered), out / f"{stem}-mistakes", kind)
        save(draw_weights(run, *images.shape[1:]), out / f"{stem}-weights", kind)


def answer(runs: Sequence[Run], dataset: data.Dataset, pictures: Sequence[str], out: Path, kind: str) -> None:
    """What the networks of all runs answer for the user's own pictures."""
    frame: Frame = frame_of(dataset.train_images[:TYPICAL])
    seen = np.stack([read_picture(path, frame, *dataset.train_images.shape[1:]) for path in pictures])
    answers = [probabilities(run.model, torch.from_numpy(seen)) for run in runs]
    for line, path in enumerate(pictures):
        print(path)
        for run, answered in zip(runs, answers, strict=True):
            print(f"  {run.name}, {run.weights}: {answered[line].argmax()}")
            print("    in %:" + "".join(f"  {digit}: {100 * p:.1f}" for digit, p in enumerate(answered[line])))
    print("what the networks saw, and answered")
    save(draw_answers(runs, pictures, seen, answers), out / "answers", kind)


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError, PictureError), reproducible_figures():
        options = parse(LookOptions, argv)
        plt.rcParams.update({"text.parse_math": False, "figure.max_open_warning": 0})  # a $ in a name is a $
        runs, dataset = read_runs(options.runs, options.best)
        if options.image:
            answer(runs, dataset, options.image, Path(options.out), options.format)
        else:
            look(runs, dataset, Path(options.out), options.format)
        if plt.get_backend().lower() != "agg":  # there is a display
            plt.show()


if __name__ == "__main__":
    main()
