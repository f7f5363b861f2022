"""The images: where they come from, which of them train, and how they become batches.

MNIST comes through datamaestro; any other data set in its format from a folder; scikit-learn's digits serve where there
is no network. Everything the loops see is a pair of tensors `images, labels`; a batch is a slice of both.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from support.files import DataError, fetch_mnist, read_folder

FOLDS = 20  # 5 % is one twentieth
TUNING_FOLDS = (0, 1, 2)  # the only ones that tune settings
COMPARISON_FOLDS = range(len(TUNING_FOLDS), FOLDS)
FRACTIONS = (0.001, 0.95)  # of the training images; above 0.95, less than a whole block would be left to validate
FOLD_SEED = 1998  # of the cut into folds alone: every run, whatever its seed, sees the same twenty blocks
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Official training and test images, as read: (N, H, W) and (N,), all uint8."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    white: int = 255  # the pixel value that becomes 1.0
    warning: str = ""  # why this is not the data set that was hoped for

    @property
    def in_features(self) -> int:
        return self.train_images[0].size

    @property
    def classes(self) -> int:
        return int(self.train_labels.max()) + 1

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of all that training and evaluation see: the four arrays, their shapes and `white`, in hexadecimal."""
        arrays = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        digest = hashlib.sha256(repr((self.white, [(a.dtype.str, a.shape) for a in arrays])).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)  # a process that trains many times reads and verifies the files once
def load(data: str = "auto", data_dir: str = "") -> Dataset:
    """The data set `data` (auto, mnist or digits), or four files in MNIST's format in the folder `data_dir`.

    Raises DataError with one line where it cannot be had; `auto` takes digits instead, and says why in `warning`.
    """
    if data_dir:
        return Dataset(Path(data_dir).resolve().name, *read_folder(Path(data_dir)))
    if data == "digits":
        return load_digits()
    try:
        return load_mnist()
    except DataError as error:
        if data == "mnist":
            raise
        return load_digits(warning=str(error))


def load_mnist() -> Dataset:
    """70,000 handwritten digits of 28 x 28 pixels, 10,000 of them for the test."""
    fetch_mnist()  # a download with a time-out; every file is verified
    from datamaestro import prepare_dataset  # takes half a second

    ds = prepare_dataset("com.lecun.mnist")
    train, test = ds.train, ds.test
    return Dataset("mnist", train.images.data(), train.labels.data(), test.images.data(), test.labels.data())


def load_digits(warning: str = "") -> Dataset:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels; a stratified fifth is the test set."""
    from sklearn import datasets  # takes a second

    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    test, *train = stratified_blocks(labels, 5)
    train = np.sort(np.concatenate(train))
    return Dataset("digits", images[train], labels[train], images[test], labels[test], white=16, warning=warning)


def by_class(labels: np.ndarray) -> np.ndarray:
    """range(N), class after class, shuffled within each."""
    shuffled = np.random.RandomState(FOLD_SEED).permutation(len(labels))  # RandomState: the same for every NumPy
    return shuffled[np.argsort(labels[shuffled], kind="stable")]


def stratified_blocks(labels: np.ndarray, blocks: int) -> list[np.ndarray]:
    """Cuts range(N) into disjoint, sorted `blocks`; their sizes, and counts of every class, differ by one at most."""
    order = by_class(labels)
    return [np.sort(order[block::blocks]) for block in range(blocks)]  # dealt out like cards, class after class


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """range(N) in an order of which every head has each class in its share, to within about one image.

    The i-th of a class's m images stands at (i + 1/2) / m, as Sainte-Laguë deals out the seats of a parliament.
    """
    order = by_class(labels)
    counts = np.bincount(labels)
    rank = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]  # of an image within its class
    return order[np.argsort((rank + 0.5) / counts[labels[order]], kind="stable")]


def split_indices(labels: np.ndarray, fold: int, fraction: float = 1 / FOLDS) -> tuple[np.ndarray, np.ndarray]:
    """Which of N training images train, and which validate; both sorted, together all of them.

    Training takes the first fraction * FOLDS of the blocks fold, fold + 1, ... (mod FOLDS); where that ends within a
    block, a stratified part of it. So 1/FOLDS is block `fold`, and a fold's smaller training sets lie in its larger.
    Raises DataError for a fraction outside of FRACTIONS, or where less than 2 images would train, or none validate.
    """
    if not FRACTIONS[0] <= fraction <= FRACTIONS[1]:
        raise DataError(f"--fraction {fraction}: allowed are {FRACTIONS[0]} to {FRACTIONS[1]} of the training images")
    blocks = stratified_blocks(labels, FOLDS)
    blocks = blocks[fold:] + blocks[:fold]
    whole = int(fraction * FOLDS)
    last = blocks[whole]
    head = last[stratified_order(labels[last])][: round((fraction * FOLDS - whole) * len(last))]
    train = np.sort(np.concatenate([*blocks[:whole], head]))
    if not 2 <= len(train) < len(labels):
        raise DataError(f"--fraction {fraction}: {len(train)} of {len(labels)} images would train; give another")
    return train, np.setdiff1d(np.arange(len(labels)), train, assume_unique=True)


def split_tensors(dataset: Dataset, split: str, fold: int, device, fraction=1 / FOLDS) -> tuple[torch.Tensor, ...]:
    """Images (N, H, W) in [0, 1] and labels (N,) of one split, on `device`; the test split is the same in all folds."""
    if split == "test":
        images, labels = dataset.test_images, dataset.test_labels
    else:
        index = split_indices(dataset.train_labels, fold, fraction)[("train", "val").index(split)]
        images, labels = dataset.train_images[index], dataset.train_labels[index]
    images = torch.tensor(images).to(device).float().div_(dataset.white)  # bytes travel, and become floats there
    return images, torch.tensor(labels).to(device).long()


class Batches:
    """Batches `images, labels` of images (N, ...) and labels (N,), every image once; the last may be smaller.

    From the CPU generator `order`, every pass draws a new order; without one, the order is that of the images.
    Of several processes, number `rank` of `ranks` gets its share of every batch.
    """

    def __init__(self, images, labels, batch_size: int, order: torch.Generator | None = None, rank=0, ranks=1):
        self.images, self.labels, self.batch_size, self.order = images, labels, batch_size, order
        self.share = slice(rank, None, ranks)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self.order is None:
            yield from zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True)
            return
        permutation = torch.randperm(len(self.labels), generator=self.order).to(self.labels.device)
        for index in (batch[self.share] for batch in permutation.split(self.batch_size)):
            yield self.images.index_select(0, index), self.labels.index_select(0, index)
