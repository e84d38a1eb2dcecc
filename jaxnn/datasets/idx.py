"""IDX files, the format of MNIST and its relatives (Fashion-MNIST, KMNIST, …).

An IDX file is one array: two zero bytes, a byte for the type of the numbers, a byte for the number of dimensions, the
length of each dimension (32 bits), then the numbers, row by row; everything big-endian.

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits.
"""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from jaxnn.datasets._files import existing_file, some
from jaxnn.datasets.dataset import Dataset
from jaxnn.datasets.labels import encode_labels

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}


def idx_folder(folder: str | os.PathLike[str]) -> tuple[Dataset, Dataset]:
    """The training set and the test set from a folder with the four files of MNIST or a relative.

    The files: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each
    plain or compressed (.gz), also spelled with a dot (train-images.idx3-ubyte).

    x: (N, height, width) uint8; y: (N,) int32. The classes are the labels of the training set, sorted: for labels
    0, 1, …, 9 the ids are the labels themselves.

    FileNotFoundError when a file is missing. ValueError when one is damaged, holds something else, or doesn't match
    the others; the message starts with its name.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder (looked from {Path.cwd()}); expected the one that holds the IDX files"
        )
    paths = {
        (part, kind, rank): _find(folder, f"{part}-{kind}", rank)
        for part in ("train", "t10k")
        for kind, rank in (("images", 3), ("labels", 1))
    }
    missing = [f"{part}-{kind}-idx{rank}-ubyte[.gz]" for (part, kind, rank), path in paths.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{folder}: missing {', '.join(missing)}; found {some(sorted(os.listdir(folder)))}; "
            "put the four files of the data set into this folder, under their usual names"
        )
    train_images, train_labels, test_images, test_labels = (path for path in paths.values() if path is not None)

    train_x, train_y = _images_and_labels(train_images, train_labels)
    test_x, test_y = _images_and_labels(test_images, test_labels)
    if train_x.shape[1:] != test_x.shape[1:]:
        raise ValueError(
            f"{test_images}: images of {_size(test_x)} pixels, but those in {train_images.name} have {_size(train_x)}; "
            "are the files from the same data set?"
        )
    train_ids, classes = encode_labels(train_labels, train_y, "classification")
    labels = np.unique(train_y)
    unknown = np.flatnonzero(~np.isin(test_y, labels))
    if unknown.size:
        raise ValueError(
            f"{test_labels}: label {unknown[0]} (counted from 0) is {test_y[unknown[0]]}, which no training image has; "
            f"the labels in {train_labels.name} are {some(classes)}; are the files from the same data set?"
        )
    test_ids = np.searchsorted(labels, test_y).astype(np.int32)
    return Dataset(train_x, train_ids, classes), Dataset(test_x, test_ids, classes)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file; a file whose name ends in .gz is decompressed.

    The array is in native byte order and has one of the dtypes uint8, int8, int16, int32, float32, float64.

    FileNotFoundError when there is no such file. ValueError, starting with the file's name, when it isn't an IDX file
    or is shorter or longer than its header says.
    """
    path = existing_file(path)
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = _decompress(path, data)
    if len(data) < 4 or data[:2] != b"\0\0":
        hint = "it is compressed: add .gz to its name" if data[:2] == b"\x1f\x8b" else "is it the right file?"
        raise ValueError(f"{path}: not an IDX file: it starts with {data[:4]!r}, expected two zero bytes; {hint}")
    code, rank = data[2], data[3]
    if code not in TYPES:
        known = ", ".join(f"0x{code:02x} {np.dtype(name)}" for code, name in TYPES.items())
        raise ValueError(f"{path}: unknown type code 0x{code:02x} in byte 3; known: {known}")
    start = 4 + 4 * rank
    if len(data) < start:
        raise ValueError(
            f"{path}: truncated: the header of {rank} dimensions takes {start} bytes, found {len(data)}; "
            "get the file again"
        )
    shape = struct.unpack(f">{rank}I", data[4:start])
    dtype = np.dtype(">" + TYPES[code])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        what = "truncated" if len(data) < expected else f"{len(data) - expected} bytes after the end"
        raise ValueError(
            f"{path}: {what}: an array of shape {shape} and type {dtype.newbyteorder('=')} takes {expected} bytes with "
            f"its header, found {len(data)}; get the file again"
        )
    return np.frombuffer(data, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _decompress(path: Path, data: bytes) -> bytes:
    if data[:2] != b"\x1f\x8b":
        raise ValueError(
            f"{path}: named .gz but not gzip: it starts with {data[:4]!r}; if it is already decompressed remove .gz "
            "from its name, otherwise get the file again"
        )
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise ValueError(f"{path}: damaged gzip file of {len(data)} bytes ({error}); get the file again") from None


def _find(folder: Path, stem: str, rank: int) -> Path | None:
    """The first of the usual names found in the folder."""
    names = [f"{stem}{joint}idx{rank}-ubyte{end}" for joint in "-." for end in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _images_and_labels(images: Path, labels: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = read_idx(images), read_idx(labels)
    for path, array, rank, what in (
        (images, x, 3, "images (N, height, width)"),
        (labels, y, 1, "labels (N,)"),
    ):
        if array.ndim != rank or array.dtype != np.uint8:
            raise ValueError(
                f"{path}: holds an array of shape {array.shape} and type {array.dtype}, expected {what} of type uint8; "
                "are the names of the images and the labels exchanged?"
            )
        if array.size == 0:
            raise ValueError(f"{path}: empty: its array has shape {array.shape}; get the file again")
    if len(x) != len(y):
        raise ValueError(
            f"{labels}: {len(y)} labels, but {images.name} holds {len(x)} images; are both files of the same set?"
        )
    return x, y


def _size(x: np.ndarray) -> str:
    return "×".join(map(str, x.shape[1:]))
