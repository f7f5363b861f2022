"""The same run as train.py, on Lightning.

    python train_lightning.py --dropout 0.2 --l2 1e-4

Nothing numerical is defined here: objective, optimiser, splits, batches, augmentation, moments of observation and tags
come from where train.py has them. What is left is which hook each line of the plain loop becomes.
"""

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from pydantic.dataclasses import dataclass

import data
import observe
from model import store_grad
from support.folder import Folder, Progress, Result, RunError, form_of, random_state, read_checkpoint, set_random_state
from support.shell import between, errors_in_one_line, interrupts, one_line, parse, replacing
from train import (
    AUGMENTATIONS,
    EVALUATION_BATCH,
    SETTINGS,
    Config,
    Diverged,
    Options,
    announce,
    augmentation_examples,
    augmented,
    best,
    build_model,
    build_optimizer,
    check_batches,
    check_finite,
    launch,
    machine,
    measurement,
    objective,
    outcome,
    random_streams,
    read_config,
    resolve,
    score,
)

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, config=SETTINGS)
class LightningOptions(Options):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and those of the Trainer."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"  # auto: that of --device
    devices: Annotated[int, between(1, 1024)] = 1  # of each machine, every one with a process of its own
    num_nodes: Annotated[int, between(1, 1024)] = 1  # machines; on each this command is started
    strategy: Literal["auto", "ddp"] = "auto"  # how processes work together


# --- the experiment --------------------------------------------------------------------------------------------------


class MNISTData(LightningDataModule):
    """The splits; of every batch to train on, the share of the process `rank` of `ranks`."""

    def __init__(self, config: Config, dataset: data.Dataset, device: torch.device, rank: int, ranks: int):
        super().__init__()
        self.config = config
        splits = {s: data.split_tensors(dataset, s, config.fold, device, config.fraction) for s in data.SPLITS}
        self.tensors, self.sizes = splits, {split: len(labels) for split, (_, labels) in splits.items()}
        check_batches(config, self.sizes["train"])
        check_shares(config, self.sizes["train"], ranks)
        _, order, augmentation = random_streams(config.seed, device)
        augmentation.manual_seed(augmentation.initial_seed() + rank)  # every process draws its own
        self.streams = {"order": order, "augmentation": augmentation}
        self.batches = data.Batches(*splits["train"], config.batch_size, order, rank, ranks)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        """All splits, since the costs on train and test are observed at the same moments."""
        return [data.Batches(*tensors, EVALUATION_BATCH) for tensors in self.tensors.values()]

    def test_dataloader(self):
        return data.Batches(*self.tensors["test"], EVALUATION_BATCH)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Augments what is trained on, and nothing else."""
        images, labels = batch
        if self.trainer.training:
            images = augmented(images, self.config, self.streams["augmentation"])
        return images, labels


class LitMLP(LightningModule):
    """The plain MLP, what becomes of its batches, and where its run is."""

    def __init__(self, config: Config, dataset: data.Dataset, steps: int):
        super().__init__()
        self.config, self.classes = config, dataset.classes
        self.model = build_model(config, dataset)
        self.optimizer, self.scheduler = build_optimizer(self.model, config, steps)
        self.trained, self.rows, self.since = (
            0,
            [],
            time.perf_counter(),
        )  # epochs, measurements, when it would have begun
        self.losses: list[torch.Tensor] = []  # of the updates of this epoch
        self.logits: dict[str, list[torch.Tensor]] = {}  # of the evaluation that is running

    def configure_optimizers(self):
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        images, _ = batch
        self.logits.setdefault(data.SPLITS[dataloader_idx], []).append(self.model(images))

    def on_validation_epoch_end(self):
        tensors, logits, self.logits = self.trainer.datamodule.tensors, self.logits, {}
        self.scores = {split: score(torch.cat(logits[split]), tensors[split][1]) for split in logits}
        if not self.rows or self.rows[-1]["epoch"] < self.trained:  # else a run that goes on looks again
            step = self.trained * len(self.trainer.datamodule.batches)
            row = {"epoch": self.trained, "step": step, "lr": self.optimizer.param_groups[0]["lr"]}
            row |= measurement(self.model, self.scores, self.config, self.classes, self.rows[0] if self.rows else None)
            row |= {"seconds": time.perf_counter() - self.since}
            row = self.trainer.strategy.broadcast(row)  # batch norm differs from process to process
            if not math.isfinite(row["loss/train"] + row["loss/val"]):
                raise Diverged(step)
            self.rows = [*self.rows, row]
        # Lightning takes the step from among the values; as 32-bit floats, whole numbers end at 16 million
        step = torch.tensor(self.rows[-1]["step"], dtype=torch.float64)
        scalars = {tag: value for tag, value in self.rows[-1].items() if tag not in ("epoch", "seconds")}
        self.log_dict(scalars | {"step": step})

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return objective(self.model, images, labels, self.config)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        """Also what the class writes in `training_epoch_end(outputs)`, which Lightning 2 took away with the outputs."""
        self.losses.append(outputs["loss"])
        if self.trainer.is_last_batch:  # in `on_train_epoch_end` it would be too late: validation comes before
            losses, self.losses = self.trainer.strategy.reduce(torch.stack(self.losses)), []  # processes stop together
            check_finite(losses, self.trained * len(losses))
            self.trained += 1

    def test_step(self, batch, batch_idx):
        images, labels = batch
        scores = score(self.model(images), labels)
        self.log_dict({"test_loss": scores.loss, "test_error": scores.error}, batch_size=len(labels), logger=False)

    def on_save_checkpoint(self, checkpoint):
        """As in the plain run `{"model": state_dict, "epoch": ...}`; and, to go on, every process's random streams."""
        states = self.all_gather(random_state(self.trainer.datamodule.streams))
        states = {name: state.reshape(self.trainer.world_size, -1).cpu() for name, state in states.items()}
        progress = Progress(self.trained, self.rows, time.perf_counter() - self.since)
        checkpoint |= {"model": self.model.state_dict(), "epoch": self.trained}
        checkpoint |= {"progress": asdict(progress), "random": states}

    def on_load_checkpoint(self, checkpoint):
        progress = Progress(**checkpoint["progress"])
        self.trained, self.rows, self.since = progress.epoch, progress.rows, time.perf_counter() - progress.seconds
        mine = {name: states[self.trainer.global_rank] for name, states in checkpoint["random"].items()}
        set_random_state(self.trainer.datamodule.streams, mine)


class Observation(Callback):
    """When to look and what is written then, Ctrl-C, and what Lightning's own callbacks begin with."""

    def __init__(self, config: Config, folder: Folder, recorder: observe.Recorder | None, interrupted):
        self.config, self.folder, self.recorder, self.interrupted = config, folder, recorder, interrupted
        self.moments = observe.evaluation_epochs(config.epochs, config.evaluations)
        self.with_histograms = observe.histogram_epochs(self.moments, config.histograms)
        self.looking = contextlib.ExitStack()
        self.stopped = False

    def setup(self, trainer, module, stage):
        torch.set_num_threads(self.config.threads or torch.get_num_threads())  # Lightning sets others for processes

    def on_train_start(self, trainer, module):
        """ModelCheckpoint and EarlyStopping know the untrained model too, and all this after the folder was moved."""
        lowest, saver, stopper = best(module.rows), trainer.checkpoint_callback, trainer.early_stopping_callback
        saver.kth_best_model_path = saver.format_checkpoint_name({})
        saver.best_k_models = {saver.kth_best_model_path: torch.tensor(lowest["loss/val"])}
        if stopper:
            stopper.best_score = torch.tensor(lowest["loss/val"])
            stopper.wait_count = len(module.rows) - 1 - module.rows.index(lowest)
            trainer.should_stop = stopper.wait_count >= stopper.patience

    def on_train_epoch_start(self, trainer, module):
        """Names the next evaluation: they are denser early, which no fixed `check_val_every_n_epoch` is."""
        trainer.check_val_every_n_epoch = next(epoch for epoch in self.moments if epoch > module.trained)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.recorder and batch_idx == 0 and module.trained in self.moments:
            step, histograms = module.global_step, module.trained in self.with_histograms
            self.looking.enter_context(self.recorder.input_gradients(module.model, store_grad, step, True, histograms))

    def on_after_backward(self, trainer, module):
        self.looking.close()

    def on_validation_end(self, trainer, module):
        row = module.rows[-1]
        if self.recorder:
            self.folder.write_rows(module.rows)
            if row["epoch"] in self.with_histograms:
                entropies = {split: one.entropy for split, one in module.scores.items()}
                self.recorder.histograms(row["step"], module.model, entropies)
        if not module.trained:  # ModelCheckpoint saves nothing outside of `fit`
            trainer.save_checkpoint(self.folder.path / "best.pt", weights_only=True)

    def on_train_epoch_end(self, trainer, module):
        """After Ctrl-C, in whichever process."""
        if trainer.strategy.reduce_boolean_decision(self.interrupted.is_set(), all=False):
            trainer.save_checkpoint(self.folder.path / "last.pt")
            trainer.should_stop = self.stopped = True


class Checkpoint(ModelCheckpoint):
    """Writes best.pt and last.pt, as the plain loop does."""

    FILE_EXTENSION = ".pt"


class Whole(TorchCheckpointIO):
    """Lightning's way leads through the temporary folder, from which another file system gets half a file."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        with replacing(Path(path)) as beside:
            torch.save(checkpoint, beside)


class Logger(TensorBoardLogger):
    """Into the run's folder itself: one event file, whatever is run, and no second file of settings."""

    NAME_HPARAMS_FILE = "config.json"

    def finalize(self, status):
        self.save()  # and does not close


# --- the Trainer instead of the loop ---------------------------------------------------------------------------------


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Lightning says nothing: of devices, of folders that exist already, and of its own deprecations."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@hushed()
def train_lightning(
    config: Config,
    folder: str | Path,
    accelerator: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str = "auto",
    quiet: bool = False,
) -> dict:
    """The run with the settings `config` in `folder`: begun, gone on with or, once it is over, only read.

    Args:
        folder: as in `train.train`; what is not the first process opens it for nothing but last.pt.
        accelerator, devices, num_nodes, strategy: of the Trainer.
        quiet: print nothing and show no progress.

    Returns what `train.train` returns, and nothing in any but the first process; raises the same.
    """
    dataset = data.load(config.data, config.data_dir)
    config = resolve(config, dataset)
    if accelerator == "auto":
        accelerator = {"cuda": "gpu"}.get(config.device, config.device)
    trainer = make_trainer(
        accelerator,
        devices,
        num_nodes,
        strategy,
        max_epochs=config.epochs,
        plugins=[Whole()],
        num_sanity_val_steps=0,  # there is an evaluation of the untrained model already
        use_distributed_sampler=False,  # data.Batches gives every process its share
        enable_progress_bar=not quiet and sys.stdout.isatty(),
        enable_model_summary=False,
    )
    opened = Folder(Path(folder), asdict(config) | {"data_sha256": dataset.sha256})
    first = opened if trainer.is_global_zero else contextlib.nullcontext()
    with first, machine(config):
        result = opened.result or run(config, opened, dataset, trainer, quiet)
        return result and result | {"folder": str(folder)}


def run(config: Config, folder: Folder, dataset: data.Dataset, trainer: Trainer, quiet: bool) -> Result | None:
    """The experiment, from its beginning or from where `folder` was left. Arguments as those of `train_lightning`."""
    rank, ranks, device = trainer.global_rank, trainer.world_size, trainer.strategy.root_device
    datamodule = MNISTData(config, dataset, device, rank, ranks)
    init, _, _ = random_streams(config.seed, device)
    torch.manual_seed(init)
    module = LitMLP(config, dataset, config.epochs * len(datamodule.batches))
    if rank:
        torch.manual_seed(init + rank)  # dropout of its own
    last = folder.path / "last.pt"
    last, trained = (last, check_last(last, module, datamodule, ranks)) if last.exists() else (None, 0)

    recorder = None
    if trainer.is_global_zero:

        def writer(path: Path, purge_step: int):
            trainer.logger = Logger(path, name="", version="", purge_step=purge_step)
            return trainer.logger.experiment

        recorder = observe.Recorder(folder.path, trained * len(datamodule.batches), writer)
        if not last:
            recorder.settings(asdict(config))
            if any(getattr(config, name) for name in AUGMENTATIONS):
                recorder.images(augmentation_examples(datamodule.tensors["train"][0][:10], config))
        if not quiet:
            announce(config, dataset, module.model, datamodule.sizes)
            if ranks > 1:
                print(f"{ranks} processes share every batch")

    def finish(status: str, step: int) -> Result | None:
        if not recorder:
            return None
        seconds, sizes = time.perf_counter() - module.since, datamodule.sizes
        return folder.finish(outcome(status, step, config, dataset, module.model, sizes, module.rows, seconds, device))

    interruption = KeyboardInterrupt(f"go on with: python train_lightning.py --resume {shlex.quote(str(folder.path))}")
    try:
        with interrupts() as interrupted:
            observation = Observation(config, folder, recorder, interrupted)
            after = {"dirpath": folder.path, "enable_version_counter": False, "save_on_train_epoch_end": False}
            trainer.callbacks += [observation]
            if config.patience:
                trainer.callbacks += [
                    EarlyStopping("loss/val", patience=config.patience, check_on_train_epoch_end=False)
                ]
            trainer.callbacks += [Checkpoint(filename="best", monitor="loss/val", save_weights_only=True, **after)]
            trainer.callbacks += [Checkpoint(filename="last", **after)]
            if trained in observation.moments:  # untrained, or as in last.pt, which is saved before it is known ...
                trainer.validate(module, datamodule=datamodule, ckpt_path=last, weights_only=True, verbose=False)
            trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
        if observation.stopped and recorder:
            raise interruption
        result = None if observation.stopped else finish("finished", module.rows[-1]["step"])
        if not quiet and not observation.stopped:
            trainer.test(module, datamodule, folder.path / "best.pt", verbose=False, weights_only=True)
            if recorder:
                loss, error = (trainer.callback_metrics[name] for name in ("test_loss", "test_error"))
                print(f"Trainer.test on best.pt: cost {loss:.4f}, error {error:.2%}")
        return result
    except Diverged as diverged:
        return finish("diverged", diverged.args[0])
    except SystemExit:  # what Lightning makes of a second Ctrl-C
        raise interruption from None
    finally:
        if recorder:
            recorder.close()


# --- around the Trainer ----------------------------------------------------------------------------------------------


def make_trainer(accelerator: str, devices: int, num_nodes: int, strategy: str, **others) -> Trainer:
    """The Trainer, which knows which process this is; RunError where it cannot be had."""
    machines = {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes, "strategy": strategy}
    try:
        trainer = Trainer(**machines, logger=False, enable_checkpointing=False, **others)
    except Exception as error:  # of many types
        words = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in machines.items())
        raise RunError(f"{words}: the Trainer refuses ({one_line(error)[:200]})") from None
    environment, rank = getattr(trainer.strategy, "cluster_environment", None), rank_zero_only.rank
    to_meet = (rank or num_nodes > 1) and isinstance(environment, LightningEnvironment)
    if (rank and trainer.world_size == 1) or (to_meet and "MASTER_PORT" not in os.environ):
        raise RunError(
            f"process {rank} of {trainer.world_size}: the environment does not say where the first one is; "
            "set MASTER_ADDR and MASTER_PORT, or unset LOCAL_RANK, RANK and NODE_RANK"
        )
    return trainer


def check_shares(config: Config, images: int, ranks: int) -> None:
    smallest = images % config.batch_size or min(images, config.batch_size)
    if ranks > 1 and smallest < ranks * (1 + (config.norm == "batch")):
        raise RunError(
            f"--devices: {ranks} processes cannot share a batch of {smallest} images; "
            "take fewer devices, or another --batch-size"
        )


def check_last(path: Path, module: LitMLP, datamodule: MNISTData, ranks: int) -> int:
    """How many epochs last.pt has been trained; RunError with one line unless this very run can go on from it."""
    parts = {"model": module.model, "optimizer": module.optimizer, "scheduler": module.scheduler}
    form = form_of(parts, datamodule.streams)
    random = {name: state.expand(ranks, -1) for name, state in form["random"].items()}
    form = {"state_dict": module.state_dict(), "optimizer_states": [form["optimizer"]], "random": random}
    return read_checkpoint(path, form)["progress"].epoch


def main(argv: list[str] | None = None) -> None:
    with errors_in_one_line(data.DataError, RunError), hushed():
        options = parse(LightningOptions, argv)
        machines = {name: getattr(options, name) for name in ("accelerator", "devices", "num_nodes", "strategy")}
        trainer = partial(train_lightning, **machines)
        if make_trainer(**machines | {"accelerator": "cpu"}).is_global_zero:
            launch(options, trainer, "train_lightning.py")
        elif options.resume:
            trainer(read_config(Path(options.resume)), options.resume)
        else:  # a new folder without a name holds nothing to go on from
            trainer(options.config, Path(options.runs_dir, options.name or os.devnull), quiet=True)


if __name__ == "__main__":
    main()
