"""Look at finished runs: the class's Question 1 in one figure, mistakes, and answers for your own pictures.

    python look.py runs/recipe runs/dropout-l2
    python look.py runs/recipe --image seven.png

Do not choose a setting by the test images: then they are no test any more.
"""

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import data
import observe
from model import entropy
from support.figures import PALETTE, reproducible_figures, save_figure
from support.pictures import Frame, PictureError, frame_of, read_picture
from support.report import markdown_table
from support.run import Row, RunError, differences, identity_of, read_checkpoint, read_json, read_rows
from support.shell import Folder, as_text, checked, errors_in_one_line, parse
from train import Config, best, build_model, predict, random_streams, read_config

COLOURS = tuple(PALETTE[place] for place in (6, 2, 3, 8, 4, 7, 5, 9))
TYPICAL = 10_000  # images, which say how digits usually lie


@checked
class LookOptions:
    """Look at finished runs: Question 1 and mistakes; or, with --image, answers for pictures."""

    runs: tyro.conf.Positional[tuple[Folder, ...]]  # folders of finished runs
    image: tuple[Folder, ...] = ()  # pictures of one digit each, PNG or JPEG, to answer for instead
    best: bool = False  # take the weights with the lowest validation cost, not the last ones
    out: Folder = "looks"  # folder for the figures; those of the same name are replaced


class Run(NamedTuple):
    """A finished run."""

    name: str  # no other one has it
    config: Config
    dataset: data.Dataset
    rows: list[Row]
    gradients: dict[str, list[tuple[float, float]]]  # by layer: epoch, and rms of its input gradient then
    untrained: nn.Module  # as it was before the first update
    model: nn.Module  # in evaluation mode, on the CPU
    moment: str  # whose weights these are: best or last
    title: str  # name and moment


# --- reading ---------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[str], best_weights: bool = False) -> tuple[list[Run], data.Dataset]:
    """The finished runs in `folders` and their data set; says in a line which cannot be drawn; RunError if none can."""
    if not folders:
        raise RunError("no run is given; name finished runs before all options, such as: python look.py runs/recipe")
    runs: list[Run] = []
    for folder in folders:
        try:
            name = Path(folder).resolve().name
            name += "+" * [run.name.rstrip("+") for run in runs].count(name)  # runs of several --runs-dir
            run = read_run(Path(folder), name, "best" if best_weights else "last")
            if runs and run.dataset.sha256 != runs[0].dataset.sha256:
                raise RunError(f"{folder}: learned from other data than {runs[0].name}; look at one of them at a time")
            runs.append(run)
        except (RunError, data.DataError) as error:
            if len(folders) == 1:
                raise
            print(f"skipped: {error}", file=sys.stderr)
    if not runs:
        raise RunError("none of these runs can be drawn; name the folder of a finished run of train.py")
    return runs, runs[0].dataset


def read_run(path: Path, name: str, moment: str) -> Run:
    """The run in `path`; RunError if it is not over or damaged, or if its network is none of train.py's."""
    config = read_config(path)
    if not (path / "result.json").exists():
        raise RunError(f"{path}: is not over; wait for it, or go on with it: python train.py --resume {path}")
    dataset = data.load(config.data, config.data_dir)
    torch.manual_seed(random_streams(config.seed, torch.device("cpu"))[0])
    untrained, model = build_model(config, dataset).eval(), build_model(config, dataset).eval()
    identity, file = identity_of(config, dataset, model), path / f"{moment}.pt"
    if read_json(path / "config.json").get("network") != identity["network"]:
        raise RunError(f"{path}: has a network of your own; look.py draws those of train.py")
    checkpoint = read_checkpoint(file, identity)
    model.load_state_dict(checkpoint["model"])
    if not all(values.isfinite().all() for values in model.state_dict().values()):
        raise RunError(f"{file}: the weights became infinite or NaN; look at the best ones, with --best")
    rows, events = read_rows(path), EventAccumulator(str(path), {"scalars": 0})
    events.Reload()
    per_step, gradients = rows[-1]["epoch"] / max(rows[-1]["step"], 1), {}
    for tag in events.Tags()["scalars"]:
        if tag.startswith("gradient_rms/"):
            gradients[tag.split("/")[1]] = [(point.step * per_step, point.value) for point in events.Scalars(tag)]
    title = f"{name}, {moment} weights, epoch {checkpoint.get('progress', checkpoint)['epoch']}"
    return Run(name, config, dataset, rows, gradients, untrained, model, moment, title)


def probabilities(model: nn.Module, images: torch.Tensor) -> np.ndarray:
    """What `model` answers for `images` (N, H, W): (N, classes), in float64, so that fewer round to 1."""
    return predict(model, images).double().softmax(dim=1).numpy()


# --- figures ---------------------------------------------------------------------------------------------------------


def overview(runs: Sequence[Run]) -> list[str]:
    """A table of what the runs change in the class's recipe, and of cost and error of both moments, in Markdown."""
    columns = [f"{split} {what}" for split in data.SPLITS for what in ("cost", "error")]
    lines = []
    for run in runs:
        settings = ", ".join(f"{name} {as_text(value)}" for name, value in differences(run.config).items())
        for moment, row in (("lowest validation cost", best(run.rows)), ("last epoch", run.rows[-1])):
            lines.append([run.name, settings or "the class's recipe", moment, f"{row['epoch']:g}"])
            for split in data.SPLITS:
                measured = f"loss/{split}" in row
                lines[-1] += [f"{row[f'loss/{split}']:.4f}", f"{row[f'error/{split}']:.2%}"] if measured else ["", ""]
    return markdown_table(["run", "settings", "moment", "epoch", *columns], lines)


def draw_question(runs: Sequence[Run], images: torch.Tensor) -> Figure:
    """The class's Question 1, a row a run: costs, weights, input gradients, and entropy of the output for `images`."""
    shape = {"figsize": (17, 3.2 * len(runs) + 0.6), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(len(runs), 4, sharex="col", sharey="col", **shape)
    for run, (costs, weights, gradients, doubt) in zip(runs, axes, strict=True):
        costs.set_ylabel(textwrap.fill(run.title, 30), fontsize=11, fontweight="bold")
        epochs = [row["epoch"] for row in run.rows]
        for split in data.SPLITS:
            if f"loss/{split}" in run.rows[0]:
                costs.plot(epochs, [row[f"loss/{split}"] for row in run.rows], label=split)
        chosen, star = best(run.rows), {"markersize": 13, "color": COLOURS[1], "zorder": 3}
        costs.plot(chosen["epoch"], chosen["loss/val"], "*", label="lowest validation cost", **star)
        for name, points in run.gradients.items():
            gradients.plot(*np.transpose(points), label=name)
        bins = np.linspace(0, np.log(run.dataset.classes), 41)
        before, now = (run.untrained, ":", "grey", "before training"), (run.model, "-", COLOURS[0], "now")
        for model, style, colour, when in (before, now):
            weights.set_prop_cycle(None)  # the same colours again
            for name, layer in observe.layers(model).items():
                heights, edges = np.histogram(layer.weight.detach().numpy(), 50, density=True)
                weights.stairs(heights, edges, linestyle=style, label=name if when == "now" else None)
            values = entropy(predict(model, images)).numpy().clip(0, bins[-1])
            shares, label = np.histogram(values, bins)[0] / len(values), f"{when}, mean {values.mean():.3f}"
            doubt.stairs(shares, bins, color=colour, fill=True, alpha=0.6, label=label)
        doubt.legend(loc="upper center", fontsize=9)
    titles = "cost in nats", "weights: dotted before, solid now", "rms of a layer's input gradient", "entropy, test"
    labels = "epoch", "weight", "epoch", "entropy of the output in nats"
    for top, bottom, title, label in zip(axes[0], axes[-1], titles, labels, strict=True):
        top.set_title(title, fontsize=12)
        bottom.set_xlabel(label)
    last = max(run.rows[-1]["epoch"] for run in runs)
    for axis in axes[0, [0, 2]]:
        axis.set_xscale("symlog", linthresh=1)
        axis.set(xlim=(0, 1.2 * last), xticks=[0, *(10**power for power in range(7) if 10**power <= last)])
    for axis in axes.flat:
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


def draw_confusions(run: Run, labels: np.ndarray, answers: np.ndarray) -> Figure:
    """What the network takes for what; the colour is that of mistakes alone, which would be lost beside the rest."""
    counts = confusion_matrix(labels, answers, labels=range(run.dataset.classes))
    mistakes = counts - np.diag(counts.diagonal())
    size = max(6.5, 0.45 * len(counts))
    figure, axis = plt.subplots(figsize=(size + 1, size), layout="constrained")
    display = ConfusionMatrixDisplay(mistakes).plot(ax=axis, cmap="Blues", im_kw={"vmax": max(1, mistakes.max())})
    for text, count in zip(display.text_.diagonal(), counts.diagonal(), strict=True):
        text.set(text=count, fontweight="bold")
    axis.set(xlabel="answer", ylabel="label")
    display.im_.colorbar.set_label("test images with a wrong answer")
    axis.set_title(f"{run.title}\n{mistakes.sum()} of {counts.sum()} test images wrong", fontsize=11, wrap=True)
    return figure


def as_percent(share: float) -> str:
    """A probability, which is never said to be 0 or 1."""
    return "> 99.99 %" if share > 0.9999 else "< 0.01 %" if share < 0.0001 else f"{100 * share:.2f} %"


def draw_mistakes(run: Run, images: np.ndarray, labels: np.ndarray, answered: np.ndarray) -> Figure:
    """The wrong answers with the highest probability, of (N, classes) `answered` for `images` (N, H, W)."""
    answers, sure = answered.argmax(axis=1), answered.max(axis=1)
    wrong = sorted(np.flatnonzero(answers != labels), key=lambda index: -sure[index])
    figure, axes = plt.subplots(4, 6, figsize=(10, 8.6), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, wrong, strict=False):
        axis.imshow(images[index], cmap="gray_r")
        title = f"a {labels[index]}, taken for {answers[index]}\n{as_percent(sure[index])}, no. {index}"
        axis.set_title(title, fontsize=9)
    title = f"{run.title}\nthe wrong answers with the highest probability on test images"
    figure.suptitle(title, fontsize=11, wrap=True)
    return figure


# --- the command line ------------------------------------------------------------------------------------------------


def look(runs: Sequence[Run], dataset: data.Dataset, save: Callable[[Figure, str], None]) -> None:
    """Question 1 for all runs, and for each what it answers on the test images."""
    print("\n".join(overview(runs)))
    images, labels = data.split_tensors(dataset, "test", 0, torch.device("cpu"))
    save(draw_question(runs, images), "question1")
    for run in runs:
        answered, truth = probabilities(run.model, images), labels.numpy()
        answers = answered.argmax(axis=1)
        print(f"{run.title}: {(answers != truth).sum()} of {len(truth)} test images wrong")
        stem = f"{run.name}-{run.moment}"
        save(draw_confusions(run, truth, answers), f"{stem}-confusions")
        save(draw_mistakes(run, images.numpy(), truth, answered), f"{stem}-mistakes")


def answer(runs: Sequence[Run], dataset: data.Dataset, pictures: Sequence[str], save: Callable) -> None:
    """What the networks of all runs see in the user's own pictures, and answer: a line a picture."""
    frame: Frame = frame_of(dataset.train_images[:TYPICAL])
    seen = np.stack([read_picture(path, frame, *dataset.train_images.shape[1:]) for path in pictures])
    answers = [probabilities(run.model, torch.from_numpy(seen)) for run in runs]
    shape = {"figsize": (2.2 + 3 * len(runs), 2.2 * len(seen) + 0.6), "width_ratios": [1.6] + [3] * len(runs)}
    figure, axes = plt.subplots(len(seen), 1 + len(runs), layout="constrained", squeeze=False, **shape)
    for index, (path, (left, *others)) in enumerate(zip(pictures, axes, strict=True)):
        print(path)
        left.imshow(seen[index], cmap="gray_r", vmin=0, vmax=1)
        left.set(xticks=[], yticks=[])
        left.set_title(textwrap.fill(Path(path).name, 22), fontsize=9)
        for axis, run, answered in zip(others, runs, answers, strict=True):
            shares, digit = answered[index], answered[index].argmax()
            print(f"  {run.title}: {digit}")
            print("    in %:" + "".join(f"  {number}: {100 * share:.1f}" for number, share in enumerate(shares)))
            bars = axis.bar(range(len(shares)), shares, color=COLOURS[0])
            bars[digit].set_color(COLOURS[1])
            axis.set(xticks=range(len(shares)), ylim=(0, 1.05))
            axis.set_title(f"{digit}: {as_percent(shares[digit])}", fontsize=10)
    for axis, run in zip(axes[-1, 1:], runs, strict=True):
        axis.set_xlabel(textwrap.fill(run.title, 38), fontsize=9)
    print("what the networks saw, and answered")
    save(figure, "answers")


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError, PictureError), reproducible_figures():
        options = parse(LookOptions, argv)
        plt.rcParams.update({"axes.prop_cycle": plt.cycler(color=COLOURS), "figure.max_open_warning": 0})
        runs, dataset = read_runs(options.runs, options.best)

        def save(figure: Figure, name: str) -> None:
            Path(options.out).mkdir(parents=True, exist_ok=True)
            print(f"  {save_figure(figure, Path(options.out, name))}")

        if options.image:
            answer(runs, dataset, options.image, save)
        else:
            look(runs, dataset, save)
        if plt.get_backend().lower() != "agg":  # there is a display
            plt.show()


if __name__ == "__main__":
    main()
