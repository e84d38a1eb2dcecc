"""A tree of arrays as one .npz file, each leaf under its path."""

import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Write the leaves of a tree to `path` (.npz), each under its path in the tree, such as "[0]['w']".

    All or nothing: the file appears under its name only when it is complete. bfloat16, which .npz lacks, is stored as
    float32, which holds it exactly; a key is stored as its data.
    """
    path = Path(path)
    leaves = {
        jax.tree_util.keystr(where): np.asarray(_storable(jnp.asarray(leaf)))
        for where, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    partial = path.with_name(path.name + ".part")
    try:
        with partial.open("wb") as file:
            np.savez(file, **leaves)  # pyright: ignore[reportArgumentType]
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_tree(path: str | os.PathLike, like: Any) -> Any:
    """Read what `save_tree` wrote, as a tree like `like` (arrays; or shapes, if there are no keys), in its dtypes.

    FileNotFoundError if there is no such file; ValueError if it is not an .npz file, or if its leaves or their shapes
    are not those of `like`, naming each.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected parameters written by save_tree")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path}: not a complete .npz file ({error}); write it again with save_tree") from error
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    expected = {jax.tree_util.keystr(where): leaf for where, leaf in leaves}
    shapes = {name: jax.eval_shape(_storable, leaf).shape for name, leaf in expected.items()}
    wrong = [f"{name} is missing" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is not expected" for name in found.keys() - expected.keys()]
    wrong += [
        f"{name} has shape {found[name].shape}, expected {shape}"
        for name, shape in shapes.items()
        if name in found and found[name].shape != shape
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(sorted(wrong))}; load it into the model it was saved from")
    return tree.unflatten([_restored(found[name], leaf) for name, leaf in expected.items()])


def _is_key(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(leaf) -> jax.Array:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.bfloat16 else jnp.asarray(leaf)


def _restored(stored: np.ndarray, leaf) -> jax.Array:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(leaf))
    return jnp.asarray(stored, leaf.dtype)
