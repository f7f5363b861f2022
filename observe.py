"""What goes to TensorBoard, and when.

One run is one folder with one set of tags (README, "What the tags mean"). Whatever is written at step k belongs to the
weights after k updates. Looking draws no random number and changes no weight.
"""

import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

BINS = 64  # of a histogram; TensorBoard draws 30
EVENT_FILES = "events.out.tfevents.*"

# The tags: {split} is train, val or test; {layer} is linear1 (next to the pixels) to linear4 (the classifier).
LOSS = "loss/{split}"
ACCURACY = "accuracy/{split}"
PENALTY = "penalty/{penalty}"
LEARNING_RATE = "lr"
MEAN_ENTROPY = "entropy_mean/{split}"
MEAN_ENTROPY_UNTRAINED = "entropy_mean/untrained"
MAX_ENTROPY = "entropy_mean/uniform"
ENTROPY = "entropy/{split}"
ENTROPY_UNTRAINED = "entropy/untrained"
WEIGHTS = "weights/{layer}"
INPUT_GRADIENT = "input_gradient/{layer}"
METRIC = "{moment}/{measure}"  # best/val_loss, last/test_error ...: the columns of the hparams tab
IMAGES = "images/augmented"


def evaluation_epochs(epochs: int, evaluations: int) -> list[int]:
    """0 and up to `evaluations` more epochs, the last included, in geometric progression: denser early.

    The validation cost falls and turns within the first few dozen of a thousand epochs.
    """
    chosen = [0]
    for left in range(min(evaluations, epochs), 0, -1):
        previous = max(chosen[-1], 1)
        chosen.append(max(chosen[-1] + 1, round(previous * (epochs / previous) ** (1 / left))))
    return chosen


def histogram_epochs(evaluation_epochs: list[int], histograms: int) -> list[int]:
    """At most `histograms` + 1 of the evaluations, the first and the last included, evenly spread; none for 0."""
    last = len(evaluation_epochs) - 1
    count = min(histograms, last)
    return [evaluation_epochs[round(i * last / count)] for i in range(count + 1)] if histograms else []


class Recorder:
    """Writes one run's event file in `folder`."""

    def __init__(self, folder: Path):
        self.folder = folder
        # TensorBoard reads the files of a resumed run in the order of their names, which hold the second: be in a later
        newest = max((int(path.name.split(".")[3]) for path in folder.glob(EVENT_FILES)), default=0)
        time.sleep(max(0.0, newest + 1 - time.time()))
        self.writer = SummaryWriter(folder)

    def describe(self, settings: Mapping[str, float | str], measures: Iterable[str]) -> None:
        """Once a run: the settings and metrics of the hparams tab, the settings as text, which curves share a chart."""
        metrics = [METRIC.format(moment=moment, measure=measure) for moment in ("best", "last") for measure in measures]
        # add_hparams would open a second run below this one, and add_scalars a run a curve
        experiment, start, _ = hparams(dict(settings), dict.fromkeys(metrics, 0.0))
        self.writer.file_writer.add_summary(experiment)
        self.writer.file_writer.add_summary(start)
        table = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
        self.writer.add_text("config", f"| setting | value |\n|---|---|\n{table}", 0)
        together = {tag: ["Multiline", [f"^{tag}/"]] for tag in ("loss", "accuracy", "entropy_mean")}
        self.writer.add_custom_scalars({"train, val and test together": together})

    def scalars(self, row: Mapping[str, float], untrained: float, classes: int) -> None:
        """One evaluation: a row of metrics.csv, the mean entropy before training and the number of classes."""
        step = row["step"]
        for column, value in row.items():
            split, _, measure = column.partition("_")
            if measure == "loss":
                self.writer.add_scalar(LOSS.format(split=split), value, step)
            elif measure == "error":
                self.writer.add_scalar(ACCURACY.format(split=split), 1 - value, step)
            elif measure == "entropy":
                self.writer.add_scalar(MEAN_ENTROPY.format(split=split), value, step)
        self.writer.add_scalar(MEAN_ENTROPY_UNTRAINED, untrained, step)
        self.writer.add_scalar(MAX_ENTROPY, math.log(classes), step)
        for penalty in ("l1", "l2"):
            self.writer.add_scalar(PENALTY.format(penalty=penalty), row[penalty], step)
        self.writer.add_scalar(LEARNING_RATE, row["lr"], step)

    def histograms(
        self, step: int, linears: Iterable[nn.Linear], entropies: Mapping[str, torch.Tensor], untrained: torch.Tensor
    ) -> None:
        """The weights of every linear layer, and the entropy of every output before (`untrained`) and now, by split."""
        for number, linear in enumerate(linears, start=1):
            self.histogram(WEIGHTS.format(layer=f"linear{number}"), linear.weight, step)
        for split, values in entropies.items():
            self.histogram(ENTROPY.format(split=split), values, step)
        self.histogram(ENTROPY_UNTRAINED, untrained, step)

    def input_gradients(self, step: int, inputs: Iterable[torch.Tensor]) -> None:
        """The gradient stored at the input of every linear layer, from the training step that follows step `step`."""
        for number, layer_input in enumerate(inputs, start=1):
            self.histogram(INPUT_GRADIENT.format(layer=f"linear{number}"), layer_input.grad, step)

    def histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        self.writer.add_histogram(tag, values.detach().cpu().numpy(), step, bins=BINS)

    def images(self, images: torch.Tensor) -> None:
        """Rows (R, C, H, W) of grey images as one picture."""
        from torchvision.utils import make_grid  # two seconds that only an augmented run has to wait

        rows, columns, height, width = images.shape
        grid = make_grid(images.clamp(0, 1).view(rows * columns, 1, height, width), nrow=columns, pad_value=0.5)
        self.writer.add_image(IMAGES, grid, 0)

    def summary(self, step: int, result: Mapping[str, Mapping[str, float]]) -> None:
        """The values of the metrics in the hparams tab: those of result.json's "best" and "last"."""
        for moment in ("best", "last"):
            for measure, value in result[moment].items():
                self.writer.add_scalar(METRIC.format(moment=moment, measure=measure), value, step)

    def close(self) -> None:
        self.writer.close()

    def flush(self) -> dict[str, int]:
        """Everything so far is on disk; returns the size of every event file, for `rewind`."""
        self.writer.flush()
        return {path.name: path.stat().st_size for path in self.folder.glob(EVENT_FILES)}


def rewind(folder: Path, sizes: Mapping[str, int]) -> None:
    """Cuts the event files in `folder` back to what `flush` returned, so that a resumed run writes no point twice."""
    for path in folder.glob(EVENT_FILES):
        if path.name in sizes:
            os.truncate(path, min(sizes[path.name], path.stat().st_size))
        else:
            path.unlink()
