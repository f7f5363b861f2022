"""What a training step, observing and augmenting cost, beside the hardware's limit and the usual ways.

    python benchmarks/step.py

One process, one thread; the contenders of a table take turns, so that a noisy machine disturbs all of them alike.
"""

import itertools
import logging
import math
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

import data
import train
import train_lightning
from augment import augment
from model import MLP

ROUNDS = 15
EPOCHS = 10  # in a round
CPU = torch.device("cpu")


def limit(images, labels, config):
    """The matrix products of a step, into buffers made beforehand: nothing that trains can take less."""
    sizes = [images[0].numel(), 100, 100, 100, 10]
    weights = [torch.rand(o, i) for i, o in itertools.pairwise(sizes)]
    rows = min(config.batch_size, len(labels))
    activations, gradients = ([torch.rand(rows, size) for size in sizes] for _ in range(2))
    weight_gradients = [torch.empty_like(weight) for weight in weights]

    def epochs(count):
        start = time.perf_counter()
        for _ in range(count * math.ceil(len(labels) / config.batch_size)):
            for layer, weight in enumerate(weights):
                torch.mm(activations[layer], weight.T, out=activations[layer + 1])
            for layer in reversed(range(len(weights))):
                torch.mm(gradients[layer + 1].T, activations[layer], out=weight_gradients[layer])
                if layer:  # nobody needs the gradient of the pixels
                    torch.mm(gradients[layer + 1], weights[layer], out=gradients[layer])
        return time.perf_counter() - start

    return epochs


def ours(images, labels, config):
    """This project's loop: train.train_step over data.Batches."""
    init, order, _ = train.random_streams(config.seed, CPU)
    model = train.build_model(config, data.load(), init)
    batches = data.Batches(images, labels, config.batch_size, order)
    optimizer, scheduler = train.build_optimizer(model, config, config.epochs * len(batches))

    def epochs(count):
        start = time.perf_counter()
        for _ in range(count):
            for batch in batches:
                train.train_step(model, optimizer, scheduler, *batch, config)
        return time.perf_counter() - start

    return epochs


def student(images, labels, config):
    """The loop of most tutorials: a DataLoader, Adam, the loss read at every step."""
    model = MLP(images[0].numel(), 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    loader = DataLoader(TensorDataset(images, labels), batch_size=config.batch_size, shuffle=True)

    def epochs(count):
        start, total = time.perf_counter(), 0.0
        for _ in range(count):
            for batch_images, batch_labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(batch_images), batch_labels)
                loss.backward()
                optimizer.step()
                total += loss.item()
        return time.perf_counter() - start

    return epochs


class UsualLightning(lightning.LightningModule):
    """The LightningModule of most tutorials."""

    def __init__(self, in_features, lr):
        super().__init__()
        self.model, self.lr = MLP(in_features, 10), lr

    def training_step(self, batch, _):
        images, labels = batch
        loss = F.cross_entropy(self.model(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Stopwatch(lightning.Callback):
    """Keeps the seconds from the first step to the last."""

    def on_train_start(self, trainer, module):
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer, module):
        self.seconds += time.perf_counter()


def fit(epochs, module, batches):
    """Seconds that a Trainer with nothing switched on takes."""
    stopwatch = Stopwatch()
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", limit_val_batches=0, callbacks=[stopwatch], **off)
    trainer.fit(module, batches)
    return stopwatch.seconds


def usual_lightning(images, labels, config):
    """Lightning's Trainer over that DataLoader, with a logged loss."""
    loader = DataLoader(TensorDataset(images, labels), batch_size=config.batch_size, shuffle=True)

    return lambda count: fit(count, UsualLightning(images[0].numel(), config.lr), loader)


def our_lightning(images, labels, config):
    """Lightning's Trainer over this project's module and its batches in memory."""
    with tempfile.TemporaryDirectory() as runs:
        run = train.Run(config, runs)
    batches = data.Batches(images, labels, config.batch_size, torch.Generator())
    return lambda count: fit(count, train_lightning.LitMLP(run), batches)


def steps_table(images, labels, config):
    """ms a step of each contender, and its ratio to the limit in the same round: medians over the rounds."""
    contenders = {
        "matrix products alone (the limit)": limit,
        "this project's step": ours,
        "DataLoader, Adam, .item()": student,
        "Lightning's Trainer, DataLoader": usual_lightning,
        "train_lightning.py, in memory": our_lightning,
    }
    contenders = {name: make(images, labels, config) for name, make in contenders.items()}
    times = {name: [] for name in contenders}
    for round_ in range(ROUNDS + 1):
        for name, epochs in contenders.items():
            seconds = epochs(EPOCHS)
            if round_:  # the first one warms up
                times[name].append(seconds / (EPOCHS * math.ceil(len(labels) / config.batch_size)) * 1000)
    print(f"\n{f'a step on {min(config.batch_size, len(labels))} images':36} {'ms':>8} {'x limit':>8}")
    reference = times["matrix products alone (the limit)"]
    for name, values in times.items():
        ratio = statistics.median(value / base for value, base in zip(values, reference, strict=True))
        print(f"{name:36} {statistics.median(values):8.2f} {ratio:8.2f}")


def observing_table(images, labels, config):
    """Seconds of a whole run of train.train, and of its bare steps: means over runs that take turns."""
    bare = ours(images, labels, config)
    steps, whole = [bare(config.epochs)], []
    with tempfile.TemporaryDirectory() as runs:
        for _ in range(2):
            start = time.perf_counter()
            train.train(config, runs, quiet=True)
            whole.append(time.perf_counter() - start)
            steps.append(bare(config.epochs))
    steps, whole = statistics.mean(steps), statistics.mean(whole)
    print(f"\n{f'{config.epochs} epochs':36} {'s':>8} {'x steps':>8}")
    print(f"{'bare steps':36} {steps:8.1f} {1:8.2f}")
    print(f"{f'whole run, {config.evaluations} evaluations':36} {whole:8.1f} {whole / steps:8.2f}")


def augmentation_table(images):
    """ms for rotation, zoom, shift and noise on a batch, here and image by image with torchvision."""
    side = images.shape[-1]
    generator = torch.Generator().manual_seed(0)
    affine = v2.RandomAffine(15, (2 / side, 2 / side), (0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR)
    transform = v2.Compose([affine, v2.GaussianNoise(sigma=0.1, clip=False)])

    def batched():
        augment(images, generator, rotate=15, zoom=0.15, shift=2, noise=0.1)

    def one_by_one():
        torch.stack([transform(image) for image in images.unsqueeze(1)])

    times = {"batched, this project": (batched, 20, []), "torchvision, image by image": (one_by_one, 2, [])}
    for _ in range(ROUNDS):
        for function, repeats, values in times.values():
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            values.append((time.perf_counter() - start) / repeats * 1000)
    first, *_ = (statistics.median(values) for _, _, values in times.values())
    print(f"\n{f'augmenting {len(images)} images':36} {'ms':>8} {'x ours':>8}")
    for name, (_, _, values) in times.items():
        print(f"{name:36} {statistics.median(values):8.2f} {statistics.median(values) / first:8.1f}")


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore")  # Lightning recommends worker processes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = train.Config(device="cpu")
    dataset = data.load()
    images, labels = data.split_tensors(dataset, "train", config.fold, CPU)
    print(f"{dataset.name}, one thread, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
    augmentation_table(images[: config.batch_size])
    steps_table(images, labels, config)
    observing_table(images, labels, config)


if __name__ == "__main__":
    main()
