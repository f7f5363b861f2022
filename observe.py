"""What goes to TensorBoard, and when.

One run is one folder with one set of tags. What is written at step k belongs to the weights after k updates. Looking
draws no random number and changes no weight.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

BINS = 64  # of a histogram; TensorBoard draws 30
EVENT_FILES = "events.out.tfevents.*"
LAYERS = {"linear": nn.Linear, "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d)}  # what is looked at
CHARTS = ("loss", "error", "mean_entropy", "gradient_rms", "weight_rms")  # in the order in which one reads them


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


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolutional layers of `model`, subclasses too, as linear1, linear2 ..., conv1 ..., in its order."""
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        for kind, classes in LAYERS.items():
            if isinstance(module, classes):
                found[f"{kind}{sum(name.startswith(kind) for name in found) + 1}"] = module
    return found


def rms(values: torch.Tensor) -> float:
    """Root of the mean square."""
    return values.float().square().mean().sqrt().item()  # in half precision a small square is 0


class Recorder:
    """Writes one run's event file in `folder`; what is there from `step` on, a run that was cut off has to do again.

    At step 0 that is all there is. A `logger` of Lightning's brings a SummaryWriter of its own, made at the same step.
    """

    def __init__(self, folder: Path, step: int = 0, logger=None):
        for path in folder.glob(EVENT_FILES) if step == 0 else ():
            path.unlink()  # purging would leave the settings there twice
        step_aside(folder)
        self.writer = logger.experiment if logger else SummaryWriter(folder, purge_step=step)
        self.flush, self.close = self.writer.flush, self.writer.close  # once all that was written is in the file

    def introduce(
        self, settings: Mapping, images: torch.Tensor, augmented: Callable, augmentations: Collection[str] = ()
    ):
        """Once a run: its settings, for the hparams tab and as text; which curves share a chart; and augmented images.

        These are, if any of `augmentations` is used, ten of the training `images` (N, H, W), and seven draws of each by
        `augmented(images, generator)`, with a generator of its own.
        """
        plain = {name: value if isinstance(value, float | int) else str(value) for name, value in settings.items()}
        # HPARAMS shows five of those that differ, by name: the augmentations are one there, so that `norm` is seen
        used = {name: value for name, value in plain.items() if name in augmentations and value}
        shown = {name: value for name, value in plain.items() if name not in augmentations}
        shown |= {"augment": " ".join(f"{name}={value:g}" for name, value in used.items()) or "none"}
        # add_hparams would open a second run below this one, and add_scalars a run a curve
        self.writer.file_writer.add_summary(hparams(shown, {})[1])
        table = "\n".join(f"| {name} | {value} |" for name, value in plain.items())
        self.writer.add_text("config", f"| setting | value |\n|---|---|\n{table}", 0)
        self.writer.add_custom_scalars({"together": {tag: ["Multiline", [f"^{tag}/"]] for tag in CHARTS}})
        if used:
            from torchvision.utils import make_grid  # two seconds that only an augmented run has to wait

            generator = torch.Generator(images.device).manual_seed(settings["seed"])
            rows = torch.cat([images[:10], *(augmented(images[:10], generator) for _ in range(7))])
            grid = make_grid(rows.clamp(0, 1).unsqueeze(1), nrow=len(images[:10]), pad_value=0.5)
            self.writer.add_image("images/augmented", grid, 0)

    def scalars(self, row: Mapping[str, float]) -> None:
        """One measurement: the keys are the tags."""
        for tag, value in row.items():
            if tag not in ("epoch", "step", "seconds"):
                self.writer.add_scalar(tag, value, row["step"])

    def histograms(self, step: int, model: nn.Module, entropies: Mapping[str, torch.Tensor]) -> None:
        """The weights of every layer, and the entropy (N,) of every output, by split."""
        for name, layer in layers(model).items():
            self.histogram(f"weights/{name}", layer.weight, step)
        if step == 0:  # under a name of its own: the random model that the others are held beside
            entropies = {**entropies, "untrained": entropies["val"]}
        for split, values in entropies.items():
            self.histogram(f"entropy/{split}", values, step, lowest=0.0)  # all on one axis, from certain to random

    @contextlib.contextmanager
    def input_gradients(self, model: nn.Module, store_grad: Callable, step: int, looked_at: bool, histograms: bool):
        """Around the forward and backward pass that follow step `step`: the gradient at the input of every layer.

        It is what `store_grad`, hooked to every layer from outside, keeps; nothing happens unless `looked_at`. A layer
        that is called several times has several inputs; one that gets no gradient (frozen, unused) has no point.
        """
        inputs: dict[str, list[torch.Tensor]] = {}

        def keep(name: str, _, arguments: tuple) -> tuple | None:
            if arguments and torch.is_tensor(x := arguments[0]) and x.is_floating_point():
                x = store_grad(x.view_as(x))  # a view: the images stay as they are
                inputs.setdefault(name, []).append(x)
                return (x.clone() if x.is_leaf else x, *arguments[1:])  # no layer may change a leaf in place
            return None

        with contextlib.ExitStack() as hooks:
            for name, layer in layers(model).items() if looked_at else ():
                hooks.enter_context(layer.register_forward_pre_hook(partial(keep, name)))
            yield
        for name, kept in inputs.items():
            if gradients := [x.grad.flatten() for x in kept if x.grad is not None]:
                gradient = torch.cat(gradients)
                self.writer.add_scalar(f"gradient_rms/{name}", rms(gradient), step)
                if histograms:  # the gradient itself, with its few large values, would be a spike at 0
                    self.histogram(f"log10_abs_input_gradient/{name}", gradient.abs().log10(), step)

    def histogram(self, tag: str, values: torch.Tensor, step: int, lowest: float | None = None) -> None:
        """Of the finite `values`, in bins from `lowest` (the smallest one) to the largest one."""
        finite = values[values.isfinite()].detach().float().cpu().numpy()
        if finite.size:
            counts, edges = np.histogram(finite, BINS, (finite.min() if lowest is None else lowest, finite.max()))
            sums = finite.size, finite.sum(), finite @ finite
            self.writer.add_histogram_raw(tag, edges[0], edges[-1], *sums, edges[1:], counts, step)


def step_aside(folder: Path) -> None:
    """Dates event files back to before now: TensorBoard reads them in the order of the dates in their names.

    These are in seconds, and another process may take up a killed run within the same one.
    """
    now = int(time.time())
    for age, path in enumerate(sorted(folder.glob(EVENT_FILES), reverse=True), start=1):
        if name := re.fullmatch(r"(.*tfevents\.)(\d+)(\..*)", path.name):
            path.rename(path.with_name(f"{name[1]}{min(int(name[2]), now - age):010d}{name[3]}"))
