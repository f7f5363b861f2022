"""The images: where they come from, which of them train, and how they become batches.

MNIST comes through datamaestro; any other data set in its format from a folder; scikit-learn's digits serve where there
is no network. Everything the loops see is a pair of tensors `images, labels`; a batch is a slice of both.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import math
import struct
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock

FOLDS = 20  # 5 % is one twentieth
TUNING_FOLDS = (0, 1, 2)  # the only ones that choose anything
COMPARISON_FOLDS = range(len(TUNING_FOLDS), FOLDS)
FRACTIONS = (0.001, 0.95)  # of the training images; above 0.95, less than a whole block would be left to validate
FOLD_SEED = 1998  # of the cut into folds alone: every run, whatever its seed, sees the same twenty blocks
SPLITS = ("train", "val", "test")
DOWNLOAD_TIMEOUT = 20  # seconds without a byte
MAX_BYTES = 2**32  # of one IDX file, unpacked: six times the largest EMNIST file; what asks for more is damaged

IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST_BYTES = 47_040_016  # of the largest of the four files, decompressed
MNIST_SHA256 = (  # of the four files, decompressed, in the order of IDX_NAMES
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)


class DataError(Exception):
    """The data cannot be used; the message is one line for the user, even where it names a file called "a\\nb"."""

    def __init__(self, message: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


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


# --- reading ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # a process that trains many times reads and verifies the files once
def load(data: str = "auto", data_dir: str = "") -> Dataset:
    """The data set `data` (auto, mnist or digits), or the four IDX files in the folder `data_dir`.

    Raises DataError with one line where it cannot be had; `auto` takes digits instead, and says why in `warning`.
    """
    if data_dir:
        return read_folder(Path(data_dir))
    if data == "digits":
        return load_digits()
    try:
        return check(Dataset("mnist", *(read_idx(path) for path in fetch_mnist())), "MNIST")
    except DataError as error:
        if data == "mnist":
            raise
        return load_digits(warning=str(error))


def read_folder(folder: Path) -> Dataset:
    """The four IDX files, plain or .gz, in `folder`."""
    paths = []
    for name in IDX_NAMES:
        candidates = (folder / name, folder / f"{name}.gz")
        try:
            found = next(filter(Path.is_file, candidates), None)
            what = "no regular file" if any(map(Path.exists, candidates)) else "no such file, plain or .gz"
        except OSError as error:
            raise DataError(f"{folder / name}: {reason(error)}; make the folder readable, or name another") from None
        if found is None:
            raise DataError(f"{folder / name}: {what}; the folder must hold {', '.join(IDX_NAMES)}")
        paths.append(found)
    name = folder.resolve().name
    if f"{folder}{name}".encode(errors="replace").decode() != f"{folder}{name}":
        raise DataError(f"{folder.resolve()}: a name that is not UTF-8 cannot be printed or written; rename the folder")
    return check(Dataset(name, *(read_idx(path) for path in paths)), str(folder))


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file (format: the foot of yann.lecun.com/exdb/mnist), plain or .gz.

    Whatever the size of the file, or of what is packed in it, no more is read than its header asks for.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise DataError(f"{path}: no regular file; put a data file in its place")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return parse_idx(file, path, path.stat().st_size)
    except (OSError, EOFError, MemoryError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({reason(error)}); make it readable or fetch it again") from None


def parse_idx(file: BinaryIO, path: Path, size: int) -> np.ndarray:
    """The array in `file`, opened from `path`, where it takes `size` bytes."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[3] == 0:
        start = start.hex(" ") or "nothing"
        raise DataError(f"{path}: not an IDX file, it starts with {start}; expected 00 00 08 and a rank")
    kind, rank = start[2:]
    if kind != 8:
        raise DataError(f"{path}: IDX type 0x{kind:02x}; only 0x08, unsigned bytes, is read")
    if rank > 3:
        raise DataError(f"{path}: an array of rank {rank}; images have rank 3, labels 1")
    header, sizes = 4 + 4 * rank, file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise DataError(f"{path}: {4 + len(sizes)} bytes, too short for its header of {header}; fetch the file again")
    shape = struct.unpack(f">{rank}I", sizes)
    expected = header + math.prod(shape)
    mismatch = f"bytes where its sizes {shape} ask for {expected}; fetch the file again"
    # gzip adds less than a thousandth, but would read any number of zeros at the end, as a sparse file has them
    if size > 2 * expected + 10_000 if path.suffix == ".gz" else size != expected:
        raise DataError(f"{path}: {size} {mismatch}")
    if not header < expected <= MAX_BYTES:
        raise DataError(f"{path}: {expected} bytes by its sizes {shape}; allowed are {header + 1} to {MAX_BYTES}")
    values = file.read(expected - header + 1)  # one more, to see that there is none
    if len(values) != expected - header:
        found = f"more than {expected}" if len(values) > expected - header else header + len(values)
        raise DataError(f"{path}: {found} {mismatch}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def reason(error: Exception) -> str:
    """What went wrong, in few words."""
    return textwrap.shorten(getattr(error, "strerror", None) or str(error) or type(error).__name__, 100)


def check(dataset: Dataset, where: str) -> Dataset:
    """`dataset` if its four arrays fit together, else DataError."""
    for split, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        if images.ndim != 3 or labels.ndim != 1:
            ranks = f"{split} images of rank {images.ndim}, labels of rank {labels.ndim}"
            raise DataError(f"{where}: {ranks}; expected 3 and 1")
        if len(images) != len(labels):
            raise DataError(f"{where}: {len(images)} {split} images but {len(labels)} labels; expected one an image")
    if len(dataset.train_labels) < FOLDS:
        raise DataError(f"{where}: {len(dataset.train_labels)} training images; {FOLDS} folds need at least {FOLDS}")
    if dataset.train_images.shape[1:] != dataset.test_images.shape[1:]:
        sizes = f"{dataset.train_images.shape[1:]} in train, {dataset.test_images.shape[1:]} in test"
        raise DataError(f"{where}: images of sizes {sizes}; they must be equal")
    missing = sorted(set(range(dataset.classes)) - set(dataset.train_labels.tolist()))
    if missing or dataset.classes < 2:
        gap = f"class {missing[0]} never occurs" if missing else "there is one class only"
        raise DataError(
            f"{where}: training labels up to {dataset.classes - 1}, but {gap}; expected 0 to K-1, all of them"
        )
    if dataset.test_labels.max() >= dataset.classes:
        highest = f"test label {dataset.test_labels.max()}"
        raise DataError(f"{where}: {highest}; allowed are 0 to {dataset.classes - 1}, the training labels")
    return dataset


def load_digits(warning: str = "") -> Dataset:
    """scikit-learn's 1797 handwritten digits of 8 x 8 pixels; a stratified fifth is the test set."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    test, *train = stratified_blocks(labels, 5)
    train = np.sort(np.concatenate(train))
    return Dataset("digits", images[train], labels[train], images[test], labels[test], white=16, warning=warning)


# --- MNIST through datamaestro ---------------------------------------------------------------------------------------


def fetch_mnist() -> list[Path]:
    """The four verified MNIST files in datamaestro's cache, downloaded where missing or damaged, as IDX_NAMES says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimaestro imports pkg_resources, which says that it is deprecated
        from datamaestro.context import find_dataset

    try:
        with tamed_downloads():
            resources = {Path(part.url).stem: part for part in find_dataset("com.lecun.mnist").resources.values()}
            return [verified(resources[name], sha256) for name, sha256 in zip(IDX_NAMES, MNIST_SHA256, strict=True)]
    except OSError as error:
        hint = "make it readable, or set DATAMAESTRO_DIR to another folder for the cache"
        raise DataError(f"{error.filename}: {reason(error)}; {hint}") from None


def verified(resource, sha256: str) -> Path:
    """The file of one of datamaestro's downloads. One with another SHA-256 stays until its replacement is there."""
    if fault(resource.path, sha256):
        resource.context.cachepath.mkdir(parents=True, exist_ok=True)
        with FileLock(resource.context.cachepath / "mnist.lock"):  # of two commands at once, one downloads
            if found := fault(resource.path, sha256):
                try:
                    replace(resource, sha256)
                except Exception as error:  # networks fail in many ways; datamaestro asserts that the status is 200
                    if getattr(error, "filename", None):
                        raise  # the fault of the file system
                    found = f"{resource.path} {found} and could not be downloaded ({reason(error)})"
                    hint = "check the network, or use --data-dir or --data digits"
                    raise DataError(f"MNIST: {found}; {hint}") from None
    return resource.path


def fault(path: Path, sha256: str) -> str:
    """What is wrong with an MNIST file; nothing if it is there and has this SHA-256."""
    if not path.exists():
        return "is missing"
    if not path.is_file():
        raise DataError(f"MNIST: {path} is no regular file; move it away")
    with path.open("rb") as file:
        start = file.read(MNIST_BYTES + 1)  # a longer file is wrong in any case
    right = hashlib.sha256(start).hexdigest() == sha256
    return "" if right else "is damaged (its SHA-256 is wrong), was left as it is,"


def replace(resource, sha256: str) -> None:
    """Downloads a file beside its place, and moves it there once it is verified."""
    path, temporary = resource.path, resource.path.with_suffix(".tmp")
    for marker in resource.context.cachepath.glob("*.url"):
        if marker.read_bytes() == resource.url.encode():  # a broken download would be taken for a whole one for ever
            marker.with_suffix(".dl").unlink(missing_ok=True)
            marker.with_suffix(".tmp").unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with resource.context.downloadURL(resource.url) as packed, gzip.open(packed.path) as file:
            temporary.write_bytes(file.read(MNIST_BYTES + 1))
        if fault(temporary, sha256):
            raise ValueError("what came has a wrong SHA-256 too")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def tamed_downloads() -> Iterator[None]:
    """datamaestro 1.6 downloads without a time-out and prints stack traces: give it the one, keep back the other."""
    import requests

    get, handlers = requests.get, logging.root.handlers[:]
    requests.get = functools.partial(get, timeout=DOWNLOAD_TIMEOUT)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        requests.get, logging.root.handlers[:] = get, handlers


# --- folds, splits, batches ------------------------------------------------------------------------------------------


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

    Raises DataError for a fraction outside of FRACTIONS, or of less than two images.
    """
    low, high = FRACTIONS
    if not low <= fraction <= high:
        raise DataError(f"--fraction {fraction}: must lie between {low} and {high} of the training images")
    blocks = stratified_blocks(labels, FOLDS)
    blocks = blocks[fold:] + blocks[:fold]
    whole = int(fraction * FOLDS)
    last = blocks[whole]
    head = last[stratified_order(labels[last])][: round((fraction * FOLDS - whole) * len(last))]
    train = np.sort(np.concatenate([*blocks[:whole], head]))
    if len(train) < 2:
        raise DataError(f"--fraction {fraction}: {len(train)} of {len(labels)} images; training needs 2: raise it")
    return train, np.setdiff1d(np.arange(len(labels)), train, assume_unique=True)


def split_tensors(
    dataset: Dataset, split: str, fold: int, device: torch.device, fraction: float = 1 / FOLDS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, H, W) in [0, 1] and labels (N,) of one split, on `device`; `split_indices` says which.

    The test split is the data set's own, whatever the fold and the fraction.
    """
    if split == "test":
        images, labels = dataset.test_images, dataset.test_labels
    else:
        index = split_indices(dataset.train_labels, fold, fraction)[("train", "val").index(split)]
        images, labels = dataset.train_images[index], dataset.train_labels[index]
    # bytes travel to the device, where they become four times as many
    images = torch.tensor(images).to(device).float().div_(dataset.white)
    return images, torch.tensor(labels).to(device).long()


class Batches:
    """Batches `images, labels`, every image once; the last one may be smaller.

    Args:
        images, labels: (N, ...) and (N,).
        batch_size: images in a batch.
        order: a CPU generator from which every pass draws a new order; without one the order is that of the images.
        rank, ranks: with several processes, which of their shares of every batch this is.
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
        for batch in permutation.split(self.batch_size):
            index = batch[self.share]
            yield self.images.index_select(0, index), self.labels.index_select(0, index)
