"""Trials an hour of search.py with two workers, beside the usual way to search with Optuna and Lightning.

    python benchmarks/search.py

The usual way is a Lightning Trainer over DataLoaders in an Optuna objective, one trial after the other. Both search the
same space at equal epochs and without pruning, and validate on the same images at the same moments.
"""

import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import lightning
import optuna
import torch
from torch.utils.data import DataLoader, TensorDataset

import data
import observe
import search
import train
from model import MLP
from support import cluster

TRIALS, EPOCHS = 8, 150
OFF = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Usual(lightning.LightningModule):
    """The LightningModule of a tutorial; keeps its lowest validation cost."""

    def __init__(self, config, in_features, classes):
        super().__init__()
        self.config, self.lowest = config, float("inf")
        self.model = MLP(in_features, classes, norm=config.norm, dropout=config.dropout)

    def training_step(self, batch, _):
        loss = train.objective(self.model, *batch, self.config)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        images, labels = batch
        self.log("val_loss", torch.nn.functional.cross_entropy(self.model(images), labels))

    def on_validation_epoch_end(self):
        self.lowest = min(self.lowest, self.trainer.callback_metrics["val_loss"].item())

    def on_train_epoch_start(self):
        moments = observe.evaluation_epochs(self.config.epochs, self.config.evaluations)
        self.trainer.check_val_every_n_epoch = next(epoch for epoch in moments if epoch > self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.config.lr)


def usual_way(fixed, dataset):
    """Seconds and lowest validation cost of the trials."""
    tensors = [data.split_tensors(dataset, split, fixed.fold, torch.device("cpu")) for split in ("train", "val")]

    def objective(trial):
        config = search.suggest(trial, fixed, search.SearchOptions().searched)
        module = Usual(config, dataset.in_features, dataset.classes)
        trainer = lightning.Trainer(max_epochs=config.epochs, accelerator="cpu", num_sanity_val_steps=0, **OFF)
        training, validation = (TensorDataset(*pair) for pair in tensors)
        loaders = DataLoader(training, config.batch_size, shuffle=True), DataLoader(validation, config.batch_size)
        trainer.fit(module, *loaders)
        return module.lowest

    start = time.perf_counter()
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=TRIALS, n_jobs=1)
    return time.perf_counter() - start, study.best_value


def this_way(fixed, trials, prune):
    """Seconds, and the trials, of a search with two workers; the start of the processes is counted."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        study = search.search(search.SearchOptions(fixed, studies_dir=folder, trials=trials, workers=2, prune=prune))
        return time.perf_counter() - start, study.trials


def main():
    warnings.simplefilter("ignore")  # Lightning recommends worker processes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cluster.be_quiet()
    dataset = data.load()
    fixed = train.Config(data=dataset.name, device="cpu", epochs=EPOCHS, histograms=0)
    usual, goal = usual_way(fixed, dataset)
    ours, _ = this_way(fixed, TRIALS, prune=False)
    print(f"{dataset.name}, {TRIALS} trials of {EPOCHS} epochs")
    print(f"{'':34} {'s':>7} {'trials/h':>9} {'ratio':>6}")
    for name, seconds in (("Lightning, DataLoader, n_jobs=1", usual), ("search.py --workers 2 --no-prune", ours)):
        print(f"{name:34} {seconds:7.1f} {TRIALS / seconds * 3600:9.0f} {usual / seconds:6.2f}")
    _, trials = this_way(fixed, 5 * TRIALS, prune=True)
    reached = [trial.datetime_complete for trial in trials if trial.value is not None and trial.value <= goal]
    begun = min(trial.datetime_start for trial in trials)
    after = f"after {(min(reached) - begun).total_seconds():.1f} s" if reached else f"not in {len(trials)} trials"
    print(f"with pruning, the usual way's best cost, {goal:.4f}, was reached {after}")


if __name__ == "__main__":
    main()
