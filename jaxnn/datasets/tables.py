"""The user's own data: a CSV file of numbers, or the arrays of an NPZ file."""

import codecs
import csv
import difflib
import io
import itertools
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxnn.datasets._files import existing_file, some
from jaxnn.datasets.dataset import Dataset
from jaxnn.datasets.labels import check_task, encode_labels

FLOAT32_MAX = float(np.finfo(np.float32).max)

# ---------------------------------------------------------------- CSV


def csv_file(path: str | os.PathLike[str], label: str | None = None, task: str = "auto") -> Dataset:
    """The examples in a CSV file: a header of column names, then one row per example.

    label: the name of the label column, by default the last. Every other column is a feature and holds finite numbers.
    task: "classification", "regression" or "auto": a classification for text and for integer-valued numbers with at
    most 20 distinct values, otherwise a regression. The classes are the sorted labels, text as text and numbers as
    numbers.

    x: (N, features) float32; y: (N,) int32 class ids, or float32 in a regression. Fields are separated by commas and
    may be quoted, the text is UTF-8 (a byte order mark is ignored), blank lines and spaces around a field are skipped.

    FileNotFoundError when there is no such file. ValueError when something in it is wrong; the message starts with
    the file, the row (its line in an editor; the header is row 1) and the column.
    """
    check_task(task)
    path = existing_file(path)
    header, rows, lines = _read_rows(path)
    if label is None:
        label = header[-1]
    elif label not in header:
        near = difflib.get_close_matches(label, header, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{path}: no column {label!r} for the labels; {hint}the columns are {some(header)}")
    at = header.index(label)
    labels = [row.pop(at).strip() for row in rows]
    features = header[:at] + header[at + 1 :]

    x = _numbers(rows)
    bad = np.argwhere(~np.isfinite(x))
    if bad.size:
        i, j = bad[0]
        raise ValueError(
            f"{path}, row {lines[i]}, column {features[j]!r}: {_no_number(rows[i][j])}; "
            "correct the cell, or leave out this row or this column (features have to be numbers)"
        )
    y = _label_array(path, lines, label, labels, task)
    y, classes = encode_labels(f"{path}, column {label!r}", y, task)
    return Dataset(x.astype(np.float32), y, classes, tuple(features))


def _read_rows(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows below it, and the line on which each row starts."""
    data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        *above, line = data[: error.start].split(b"\n")
        raise ValueError(
            f"{path}, row {len(above) + 1}, column {line.count(b',') + 1}: the byte 0x{data[error.start]:02x} is not "
            "UTF-8 text; save the file as UTF-8 (spreadsheets call it 'CSV UTF-8')"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    rows, lines, line = [], [], 1
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                rows.append(row)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, row {line}: {error}; check the quotes in this row") from None

    if not rows:
        raise ValueError(f"{path}: the file is empty; expected a header of column names and rows of numbers")
    header = [name.strip() for name in rows[0]]
    _check_header(f"{path}, row {lines[0]}", header)
    if len(rows) == 1:
        raise ValueError(f"{path}: only a header, no rows below it; expected a row for each example")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, row {line}: {len(row)} fields, but the header names {len(header)} columns; "
                "look for a missing or an extra comma (a comma inside a field needs quotes around the field)"
            )
    return header, rows[1:], lines[1:]


def _check_header(where: str, header: list[str]) -> None:
    if len(header) == 1:
        raise ValueError(
            f"{where}: only one column, {header[0]!r}; expected features and a label separated by commas "
            "(not by semicolons or tabs)"
        )
    if np.isfinite(_numbers([header])).all():
        raise ValueError(f"{where}: only numbers ({some(header)}), expected a header; add a first row of column names")
    for j, name in enumerate(header):
        if not name:
            raise ValueError(
                f"{where}, column {j + 1}: has no name; name it, or remove it if it only numbers the rows "
                "(pandas: to_csv(..., index=False))"
            )
        if name in header[:j]:
            raise ValueError(
                f"{where}, column {j + 1}: a second column {name!r} (the first is column {header.index(name) + 1}); "
                "give every column a name of its own"
            )


def _label_array(path: Path, lines: list[int], label: str, cells: list[str], task: str) -> np.ndarray:
    """The labels as numbers if all of them are, otherwise as text if the task allows it."""
    for line, cell in zip(lines, cells, strict=True):
        if cell.lower() in ("", "nan"):
            raise ValueError(
                f"{path}, row {line}, column {label!r}: the label is missing (found {cell!r}); "
                "fill it in, or leave out this row"
            )
    numbers = _numbers([cells])[0]
    numeric = np.isfinite(numbers)
    if numeric.all():
        return numbers
    i = int(np.argmin(numeric))  # the first that isn't a number
    where = f"{path}, row {lines[i]}, column {label!r}: {_no_number(cells[i])}"
    if task == "regression":
        raise ValueError(f"{where}; a regression needs a number in every row: correct the label or leave out the row")
    if task == "auto" and numeric.any():
        raise ValueError(
            f"{where}, but the label in row {lines[int(np.argmax(numeric))]} is one; correct the label, "
            "or pass task='classification' if the labels are names"
        )
    return np.array(cells)


def _numbers(rows: Sequence[Sequence[str]]) -> np.ndarray:
    """The cells as float64; not finite where a cell is not a number that fits float32."""
    x = np.fromiter(map(_number, itertools.chain.from_iterable(rows)), np.float64).reshape(len(rows), -1)
    x[np.abs(x) > FLOAT32_MAX] = np.inf
    return x


def _number(cell: str) -> float:
    """The number in a cell, NaN if there is none. 1_000, a number to Python, is a typo in a table."""
    try:
        return math.nan if "_" in cell else float(cell)
    except ValueError:
        return math.nan


def _no_number(cell: str) -> str:
    """What is wrong with a cell that isn't a number."""
    if not cell.strip():
        return "expected a number, the cell is empty"
    if math.isfinite(_number(cell)):
        return f"{cell} is too large for a float32 (at most 3.4e38)"
    return f"expected a finite number, found {cell!r}"


# ---------------------------------------------------------------- NPZ


def npz_file(path: str | os.PathLike[str], task: str = "auto") -> Dataset:
    """The examples in an NPZ file, as `np.savez(path, x=x, y=y)` writes it.

    x: (N, features), or images (N, height, width) or (N, height, width, channels). uint8 stays uint8, every other
    numeric dtype becomes float32.
    y: (N,) or (N, 1) numbers or text, or (N, k) numbers, the k targets of a regression.
    task: as in `csv_file`. Columns have no names in an NPZ file: features is empty.

    FileNotFoundError when there is no such file. ValueError, starting with the file's name, for missing or damaged
    arrays, arrays of Python objects, shapes that don't fit, and numbers that aren't finite, with the index of
    the first.
    """
    check_task(task)
    path = existing_file(path)
    x, y = _read_arrays(path)
    if x.dtype.kind not in "buif" or y.dtype.kind not in "buifU":
        raise ValueError(
            f"{path}: x has type {x.dtype} and y has type {y.dtype}; expected numbers in x, and numbers or text in y"
        )
    if not 2 <= x.ndim <= 4:
        raise ValueError(f"{path}: x has shape {x.shape}, expected (N, features) or images (N, height, width)")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim not in (1, 2) or (y.ndim == 2 and (y.dtype.kind == "U" or task == "classification")):
        raise ValueError(f"{path}: y has shape {y.shape}, expected (N,), one label for each example")
    if len(x) != len(y):
        raise ValueError(f"{path}: x has {len(x)} examples (shape {x.shape}) but y has {len(y)} (shape {y.shape})")
    if x.size == 0 or y.size == 0:
        raise ValueError(f"{path}: empty: x has shape {x.shape} and y has shape {y.shape}")
    if x.dtype != np.uint8:
        x = _float32(path, "x", x)
    if y.dtype.kind == "U":
        if (y == "").any():
            raise ValueError(f"{path}, array y, row {np.argmax(y == '')} (counted from 0): the label is empty text")
    else:
        _float32(path, "y", y)
    if task == "auto" and y.ndim == 2 and np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all():
        raise ValueError(
            f"{path}: y of shape {y.shape} looks like one-hot classes; save y.argmax(axis=1) instead, "
            "or pass task='regression'"
        )
    return Dataset(x, *encode_labels(f"{path}, y", y, task))


def _read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK" and zipfile.is_zipfile(file)
    if not is_zip:
        raise ValueError(
            f"{path}: not an NPZ file, or a truncated one; write it with np.savez({path.name!r}, x=x, y=y)"
        )
    try:  # with a file of our own: np.load would leave its own open on failure
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "y") if name not in arrays.files]
            if not missing:
                return arrays["x"], arrays["y"]
            found = some(arrays.files)
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot read its arrays ({error}); expected numbers or text, not Python objects: "
            "convert x with x.astype(np.float32), and y to numbers or with y.astype(str)"
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: damaged: {error}; write it again with np.savez(path, x=x, y=y)") from None
    raise ValueError(
        f"{path}: no array {' and no array '.join(map(repr, missing))}, found {found}; "
        "save the examples as x and their labels as y: np.savez(path, x=x, y=y)"
    )


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array as float32; ValueError for a number that isn't finite then."""
    with np.errstate(over="ignore"):
        small = array.astype(np.float32)
    bad = np.argwhere(~np.isfinite(small))
    if bad.size:
        index = tuple(map(int, bad[0]))
        column = f", column {', '.join(map(str, index[1:]))}" if index[1:] else ""
        raise ValueError(
            f"{path}, array {name}, row {index[0]}{column} (counted from 0): {_no_number(str(array[index]))}; "
            "correct it, or leave out this example"
        )
    return small
