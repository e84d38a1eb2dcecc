"""Text to learn from: files as bytes, the held-out part, the ids that a language model takes, and a trigram model."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxnn.datasets._files import existing_file


class Text(NamedTuple):
    """A text in two parts."""

    train: bytes
    held_out: bytes  # what follows the training part


def text_files(path: str | os.PathLike[str]) -> Text:
    """The text of a file, or of all files in a folder and its subfolders, sorted by path and concatenated.

    The last tenth is held out: for a folder, the whole files at the end that come nearest to a tenth; for a single
    file, its end, cut at the start of a (UTF-8) character. In a folder, files that are not text (they contain a zero
    byte) are skipped, and so is every file or subfolder whose name begins with a dot.
    FileNotFoundError when there is nothing at `path`; ValueError when there is no text in it.
    """
    path = Path(path)
    if not path.is_dir():
        return _split([existing_file(path).read_bytes()], path)
    inside = (p for p in sorted(path.rglob("*")) if p.is_file())
    files = [p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    texts = (existing_file(p).read_bytes() for p in files)
    return _split([text for text in texts if b"\0" not in text], path)


def standard_library() -> Text:
    """The sources of Python's standard library, its top-level modules: about 4.7 MB, fixed for a Python version.

    Split as `text_files` splits a folder. ValueError where Python was installed without its sources.
    """
    folder = Path(os.__file__).parent
    return _split([p.read_bytes() for p in sorted(folder.glob("*.py"))], folder)


def _split(texts: Sequence[bytes], path: Path) -> Text:
    texts = [text for text in texts if text]
    total = sum(map(len, texts))
    if total < 2:
        raise ValueError(f"{path}: no text in it; expected a file that is not empty, or a folder of such files")
    cut = total - total // 10
    if len(texts) == 1:
        [text] = texts
        while cut > 1 and text[cut] & 0b1100_0000 == 0b1000_0000:  # inside a UTF-8 character
            cut -= 1
        return Text(text[:cut], text[cut:])
    ends = np.cumsum([len(text) for text in texts])
    n = 1 + int(np.abs(ends[:-1] - cut).argmin())
    return Text(b"".join(texts[:n]), b"".join(texts[n:]))


class Vocabulary(NamedTuple):
    """What an id stands for."""

    symbols: tuple[bytes, ...]  # of id 0, 1, …
    encode: Callable[[bytes], np.ndarray]  # a text into ids (n,)

    def decode(self, ids) -> str:
        """The text of ids (n,); bytes that are not UTF-8 become �."""
        return b"".join(self.symbols[i] for i in ids).decode(errors="replace")


def byte_vocabulary() -> Vocabulary:
    """The 256 bytes: every text can be encoded, and nothing is unknown.

    >>> vocabulary = byte_vocabulary()
    >>> vocabulary.encode("aé".encode()), vocabulary.decode([97, 195, 169])
    (array([ 97, 195, 169], dtype=uint8), 'aé')
    """
    return Vocabulary(tuple(bytes([i]) for i in range(256)), lambda text: np.frombuffer(text, np.uint8))


def character_vocabulary(text: bytes) -> Vocabulary:
    """The characters that occur in a text (UTF-8), sorted, preceded by �, id 0, for all others.

    ValueError, also from encode, for text that is not UTF-8.

    >>> vocabulary = character_vocabulary(b"hello")
    >>> vocabulary.encode(b"help"), vocabulary.decode([0, 1])
    (array([2, 1, 3, 0], dtype=int32), '�e')
    """
    points = np.unique(_code_points(text))
    points = points[points != ord("�")]

    def encode(text: bytes) -> np.ndarray:
        found = _code_points(text)
        return np.where(np.isin(found, points), np.searchsorted(points, found) + 1, 0).astype(np.int32)

    return Vocabulary(("�".encode(), *(chr(point).encode() for point in points)), encode)


def _code_points(text: bytes) -> np.ndarray:
    try:
        return np.frombuffer(text.decode().encode("utf-32-le"), np.uint32)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text is not UTF-8 (byte {text[error.start]:#04x} at {error.start}): convert it, or read it as bytes"
        ) from error


# ---------------------------------------------------------------- what a language model should beat


def trigram_bits(text: Text, k: float = 30.0) -> float:
    """Bits per byte of a byte trigram model, fitted to the training part, on all but the first two held-out bytes.

    p_0 = 1/256,  p_n(c | the n - 1 bytes before) = (count(them, c) + k p_(n-1)) / (count(them) + k),  n = 1, 2, 3

    Each distribution is mixed with the next shorter one, which counts less the more often the context was seen. The
    default k is close to the best for the sources of the standard library.
    ValueError where either part is shorter than a trigram.

    >>> round(trigram_bits(Text(b"the cat sat on the mat. " * 9, b"the cat sat"), k=1.0), 2)
    0.31
    """
    fitted, measured = (np.frombuffer(part, np.uint8).astype(np.int64) for part in text)
    if min(len(fitted), len(measured)) < 3:
        raise ValueError(f"trigram_bits: the parts have {len(fitted)} and {len(measured)} bytes, expected at least 3")
    p: np.ndarray = np.full(len(measured) - 2, 1 / 256)
    for n in (1, 2, 3):
        counts: np.ndarray = np.bincount(_grams(fitted, n), minlength=256**n)
        of_context: np.ndarray = counts.reshape(-1, 256).sum(1)
        grams = np.asarray(_grams(measured, n))[-len(p) :]
        p = (counts[grams] + k * p) / (of_context[grams // 256] + k)
    return float(-np.log2(p).mean())


def _grams(x, n):
    """Each n neighbours as one number."""
    return sum(x[i : len(x) - n + 1 + i] * 256 ** (n - 1 - i) for i in range(n))
