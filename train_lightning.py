"""The same run as train.py, on Lightning.

    python train_lightning.py --dropout 0.2 --l2 1e-4

Nothing numerical is defined here: objective, optimiser, splits, batches, augmentation, moments of observation and tags
come from where train.py has them. What is left is which hook each line of the plain loop becomes.
"""

import logging
import math
import os
import sys
import warnings
from dataclasses import asdict, dataclass, fields

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import data
from shell import errors_in_one_line, parse
from train import (
    EVALUATION_BATCH,
    Config,
    Diverged,
    Options,
    Run,
    RunError,
    announce,
    augmented,
    build_model,
    build_optimizer,
    check_finite,
    check_ranges,
    conclude,
    finished_result,
    foreign_checkpoint,
    objective,
    random_state,
    random_streams,
    read_checkpoint,
    refuse_settings,
    score,
    set_random_state,
)

FOLDER = "LIGHTNING_RUN_FOLDER"  # tells the other processes of a run where it is kept

# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LightningOptions(Options):
    """Train a small MLP on 5 % of MNIST with Lightning: the settings of train.py, and those of the Trainer."""

    accelerator: str = ""  # of Lightning's Trainer; by default that of --device
    devices: int = 1  # how many of them, each with a process of its own
    strategy: str = "auto"  # how processes work together, such as ddp
    patience: int = 0  # evaluations without a lower validation cost after which training stops; 0 for never

    def __post_init__(self):
        check_ranges(self, {"devices": (1, math.inf), "patience": (0, math.inf)})


# --- the experiment --------------------------------------------------------------------------------------------------


class MNISTData(LightningDataModule):
    """The training batches, and the three splits to evaluate on."""

    def __init__(self, run: Run):
        super().__init__()
        self.run, self.config = run, run.config
        _, order, augmentation = random_streams(self.config.seed, run.device)
        self.streams = {"order": order, "augmentation": augmentation}

    def prepare_data(self):
        """In one process: what is to be downloaded. `Run` has asked for it already, and this finds it there."""
        data.load(self.config.data, self.config.data_dir)

    def setup(self, stage):
        """In every process: its share of each batch, and augmentations of its own."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if rank:
            self.streams["augmentation"].manual_seed(self.streams["augmentation"].initial_seed() + rank)
        if ranks > 1:
            print(f"process {rank + 1} of {ranks}: every batch from image {rank} in steps of {ranks}", flush=True)
        training = *self.run.tensors["train"], self.config.batch_size, self.streams["order"]
        self.batches = data.Batches(*training, rank=rank, ranks=ranks)

    def train_dataloader(self):
        return self.batches

    def val_dataloader(self):
        """All splits, since the costs on train and test are observed at the same moments."""
        return [data.Batches(*tensors, EVALUATION_BATCH) for tensors in self.run.tensors.values()]

    def test_dataloader(self):
        return data.Batches(*self.run.tensors["test"], EVALUATION_BATCH)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        """Augments what is trained on, and nothing else."""
        images, labels = batch
        if self.trainer.training:
            images = augmented(images, self.config, self.streams["augmentation"])
        return images, labels


class LitMLP(LightningModule):
    """The plain MLP, and what becomes of its batches."""

    def __init__(self, run: Run):
        super().__init__()
        self.run, self.config = run, run.config
        init, _, _ = random_streams(self.config.seed, run.device)
        self.model = build_model(self.config, run.dataset, init)
        self.losses: list[torch.Tensor] = []  # of the updates of this epoch
        self.logits: dict[str, list[torch.Tensor]] = {}  # of the evaluation that is running
        self.inputs: list[torch.Tensor] | None = None  # of every linear layer, where this step is looked at

    def configure_optimizers(self):
        steps = self.config.epochs * self.run.steps_per_epoch
        optimizer, scheduler = build_optimizer(self.model, self.config, steps)
        if not scheduler:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        images, _ = batch
        self.logits.setdefault(list(self.run.tensors)[dataloader_idx], []).append(self.model(images))

    def on_validation_epoch_end(self):
        self.scores = {
            split: score(torch.cat(logits), self.run.tensors[split][1].to(self.device))
            for split, logits in self.logits.items()
        }
        self.logits.clear()
        if not all(math.isfinite(self.scores[split][0]) for split in ("train", "val")):
            raise Diverged(self.global_step)
        self.log("val_loss", self.scores["val"][0])

    def training_step(self, batch, batch_idx):
        looked_at = batch_idx == 0 and self.current_epoch in self.run.histogram_epochs
        self.inputs = [] if looked_at else None
        loss = objective(self.model, *batch, self.config, self.inputs)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self):
        """The home of what the class writes in `training_epoch_end(outputs)`, which Lightning 2 has taken away.

        There are no `outputs` either: a module keeps for itself what it wants to see again.
        """
        if self.losses:  # a run that goes on from an evaluation comes here before its first step
            losses = self.trainer.strategy.reduce(torch.stack(self.losses))  # so that processes stop together
            self.losses.clear()
            check_finite(losses, self.current_epoch * self.run.steps_per_epoch)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        loss, error, _ = score(self.model(images), labels)
        self.log_dict({"test_loss": loss, "test_error": error}, batch_size=len(labels))  # the mean over all images

    def on_save_checkpoint(self, checkpoint):
        """As in the plain run, `{"model": state_dict, "config": ...}`: either script's best.pt is read alike."""
        checkpoint |= {"model": self.model.state_dict(), "config": asdict(self.config)}


class Observation(Callback):
    """When to evaluate, and what the first process writes; `Run` decides and writes as it does for the plain loop."""

    def __init__(self, run: Run, streams: dict[str, torch.Generator], first: bool):
        self.run, self.streams, self.first = run, streams, first
        self.random = None

    def state_dict(self):
        if not self.first:  # every process is asked, and the first one answers
            return {}
        return {"run": self.run.state_dict(), "random": random_state(self.run.device, self.streams)}

    def load_state_dict(self, state_dict):
        self.random = state_dict["random"]

    def on_train_start(self, trainer, module):
        if self.random and self.first:
            set_random_state(self.run.device, self.streams, self.random)
        elif self.random:  # the order is common, the other streams are each process's own
            self.streams["order"].set_state(self.random["order"])
        if self.first and self.run.due(0):
            self.run.measure(module.model, 0, trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_start(self, trainer, module):
        """Names the next evaluation: they are denser early, which no fixed `check_val_every_n_epoch` is."""
        trainer.check_val_every_n_epoch = next(e for e in self.run.evaluation_epochs if e > trainer.current_epoch)

    def on_after_backward(self, trainer, module):
        if module.inputs and self.first:
            self.run.recorder.input_gradients(module.global_step, module.inputs)

    def on_validation_end(self, trainer, module):
        if self.first:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.run.record(module.model, trainer.current_epoch + 1, lr, module.scores)


class Checkpoint(ModelCheckpoint):
    """Writes best.pt and last.pt, as the plain loop does."""

    FILE_EXTENSION = ".pt"


def train_lightning(
    config: Config,
    runs_dir: str = "runs",
    name: str = "",
    resume: str = "",
    accelerator: str = "",
    devices: int = 1,
    strategy: str = "auto",
    patience: int = 0,
    quiet: bool = False,
) -> dict:
    """Runs one experiment on Lightning; returns what `train.train` returns, in every process, and raises the same."""
    torch.set_flush_denormal(True)  # an over-fitted network makes denormal numbers, which are slow on a CPU
    if resume and (result := finished_result(resume)):
        return result
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    run = Run(config, runs_dir, name, resume if first else os.environ[FOLDER])
    config = run.config
    os.environ[FOLDER] = str(run.folder)
    module, datamodule = LitMLP(run), MNISTData(run)
    last = run.folder / "last.pt" if (run.folder / "last.pt").exists() else None
    if first:
        run.start(module.model, last and run_state(run))
    else:
        torch.manual_seed(torch.initial_seed() + int(os.environ["LOCAL_RANK"]))  # dropout of its own
    if first and not quiet:
        announce(run)

    after_evaluation = {"enable_version_counter": False, "save_on_train_epoch_end": False}
    callbacks = [
        Observation(run, datamodule.streams, first),
        Checkpoint(run.folder, "best", monitor="val_loss", **after_evaluation),
        Checkpoint(run.folder, "last", **after_evaluation),
    ]
    if patience:
        callbacks.append(EarlyStopping("val_loss", patience=patience, check_on_train_epoch_end=False))
    trainer = Trainer(
        accelerator=accelerator or {"cuda": "gpu"}.get(config.device, config.device),
        devices=devices,
        strategy=strategy,
        max_epochs=config.epochs,
        callbacks=callbacks,
        logger=False,  # observe.py writes the event file
        num_sanity_val_steps=0,  # there is an evaluation of the untrained model already
        use_distributed_sampler=False,  # data.Batches gives every process its share
        enable_progress_bar=not quiet and sys.stdout.isatty(),
        enable_model_summary=False,
        default_root_dir=run.folder,
    )
    try:
        warnings.filterwarnings("ignore", module=r"lightning\.")  # that the folder exists, and of its own deprecations
        trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
        if not quiet:
            (tested,) = trainer.test(module, datamodule, run.folder / "best.pt", verbose=False, weights_only=True)
            if first:
                print(f"Trainer.test on best.pt: cost {tested['test_loss']:.4f}, error {tested['test_error']:.2%}")
        return run.finish() if first else {}
    except Diverged as diverged:
        return run.finish("diverged", step=diverged.args[0]) if first else {}
    except SystemExit:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt(f"go on with: python train_lightning.py --resume {run.folder}") from None
    finally:
        if first:
            run.recorder.close()


def run_state(run: Run) -> dict:
    """The `Run.state_dict` in last.pt; RunError with one line if it is not one of Lightning's."""
    checkpoint = read_checkpoint(run)
    try:
        return checkpoint["callbacks"]["Observation"]["run"]
    except KeyError as error:
        raise foreign_checkpoint(run, error) from None


def main(argv: list[str] | None = None) -> None:
    options = parse(LightningOptions, argv)
    refuse_settings(options)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    with errors_in_one_line(data.DataError, RunError):
        result = train_lightning(**{f.name: getattr(options, f.name) for f in fields(options)})
        if result:
            conclude(result, options, "train_lightning.py")


if __name__ == "__main__":
    main()
