"""The files behind data.py: four files in the IDX format are read and checked; MNIST's are downloaded and verified."""

import contextlib
import gzip
import hashlib
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import requests

from support.shell import replacing

IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
PLACES = (".", "raw", "MNIST/raw")  # of the files within a folder; the last is torchvision's
TIMEOUT = 20  # seconds without a byte, after which a download is given up
MNIST_SHA256 = {  # of the unpacked files, by datamaestro's names for them
    "train_images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


class DataError(Exception):
    """The data cannot be used; the message is one line for the user."""


def read_folder(folder: Path) -> list[np.ndarray]:
    """Training images (N, H, W) and labels (N,), then the test set's, all uint8; DataError for a faulty file."""
    try:
        place = next((folder / place for place in PLACES if idx_file(folder / place, IDX_NAMES[0])), folder)
        paths = [idx_file(place, name) for name in IDX_NAMES]
        if None in paths:
            missing = place / IDX_NAMES[paths.index(None)]
            raise DataError(f"{missing}: no such file, plain or .gz; the folder must hold {', '.join(IDX_NAMES)}")
        arrays = [read_idx(path, rank) for path, rank in zip(paths, (3, 1, 3, 1), strict=True)]
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror}; make it readable, or name another") from None
    check(*arrays, place)
    return arrays


def idx_file(place: Path, name: str) -> Path | None:
    """The file called `name`, plain or .gz, or with a dot in the name, as 7-Zip and Kaggle have it."""
    names = (name, name.replace("-idx", ".idx"), f"{name}.gz", f"{name.replace('-idx', '.idx')}.gz")
    return next((place / name for name in names if (place / name).is_file()), None)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The unsigned bytes in an IDX file (its format: the foot of yann.lecun.com/exdb/mnist), an array of that rank."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: damaged, cannot be unpacked; fetch the file again") from None
    if raw[:4] != bytes([0, 0, 8, rank]):
        expected = f"{rank} dimensions of bytes, 00 00 08 {rank:02} (images have 3, labels 1: are the two swapped?)"
        raise DataError(f"{path}: starts with {raw[:4].hex(' ') or 'nothing'}; expected an IDX file of {expected}")
    header = 4 + 4 * rank
    shape = struct.unpack_from(f">{rank}I", raw.ljust(header, b"\0"), 4)
    asked = header + math.prod(shape)
    if len(raw) != asked or 0 in shape:
        raise DataError(f"{path}: damaged, {len(raw)} bytes for sizes {shape}, not {asked}; fetch the file again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def check(train_images, train_labels, test_images, test_labels, place: Path) -> None:
    """Raises DataError where the four arrays do not fit together."""
    for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(f"{place}: {len(images)} {split} images but {len(labels)} labels; expected one an image")
    if (size := train_images.shape[1:]) != test_images.shape[1:]:
        raise DataError(f"{place}: images of sizes {size} in train, {test_images.shape[1:]} in test; must be equal")
    highest = int(train_labels.max())
    missing = np.setdiff1d(np.arange(max(highest, 1) + 1), train_labels)
    if len(missing):
        raise DataError(f"{place}: training labels up to {highest}, none is {missing[0]}; expected are 0 to K-1, K > 1")
    if test_labels.max() > highest:
        raise DataError(f"{place}: test label {test_labels.max()}; allowed are the training labels, 0 to {highest}")


def fetch_mnist() -> None:
    """Sees to it that datamaestro's cache holds MNIST's four files, whole; else raises DataError.

    datamaestro itself would wait for ever for a silent server, and take half a file for a whole one.
    """
    with warnings.catch_warnings(action="ignore"):  # experimaestro imports pkg_resources, which is deprecated
        from datamaestro.context import find_dataset
    try:
        for name, file in find_dataset("com.lecun.mnist").resources.items():
            if not file.path.exists():
                download(file.url, file.path, MNIST_SHA256[name])
            if hashlib.sha256(file.path.read_bytes()).hexdigest() != MNIST_SHA256[name]:
                raise DataError(f"MNIST: {file.path} is damaged (its SHA-256 is wrong); delete it and run again")
    except OSError as error:
        hint = "make it readable, or set DATAMAESTRO_DIR to another folder"
        raise DataError(f"MNIST: {error.filename or 'the cache'}: {error.strerror}; {hint}") from None


def download(url: str, path: Path, sha256: str) -> None:
    """Unpacks what `url` serves into `path`, at once or, with DataError, not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    status, unpacked = "no connection", b""
    with contextlib.suppress(requests.RequestException, gzip.BadGzipFile, EOFError, zlib.error):
        answer = requests.get(url, timeout=TIMEOUT)
        status = f"status {answer.status_code}"
        unpacked = gzip.decompress(answer.content)
    if hashlib.sha256(unpacked).hexdigest() != sha256:
        hint = "check the network, or use --data-dir or --data digits"
        raise DataError(f"MNIST: {url} could not be downloaded ({status}); {hint}")
    with replacing(path) as beside:  # of two commands at once, each writes a whole file
        beside.write_bytes(unpacked)
