"""Rows of a table that several ids of the batch share: what each occurrence contributes.

A row's contribution from one occurrence is the gradient of a copy of that row, appended to the table and used by that
occurrence only: the forward's value stays the same.
"""

from collections.abc import Iterator

import numpy as np

from jaxnn.verify.explain.leaf_algebra.experiments import Lab, numeric
from jaxnn.verify.explain.leaf_algebra.wrong_leaf import Explanation, View, largest


def explain(view: View, lab: Lab) -> Iterator[Explanation]:
    """manual's row is one occurrence's contribution instead of their sum."""
    if not view.comparable or view.truth.ndim < 2:
        return
    rows = len(view.truth)
    others = tuple(range(1, view.truth.ndim))
    wrong = np.flatnonzero(view.wrong.any(others))
    for k, ids in enumerate(view.evidence.given):
        if not numeric(ids) or ids.dtype.kind not in "iu" or not ids.size or ids.min() < 0 or ids.max() >= rows:
            continue
        several = np.flatnonzero(np.bincount(ids.ravel(), minlength=rows) > 1)
        if not wrong.size or not np.isin(wrong, several).all():
            continue
        for name, order in (("last", -1), ("first", 1)):
            copied = _contributions(lab, view.i, k, several, order)
            if copied is not None and largest(view.manual[several] - copied) <= 1e-6 * largest(copied):
                path = view.evidence.given_paths[k]
                ids_shown = ", ".join(map(str, wrong[:6])) + (", …" if wrong.size > 6 else "")
                what = f"rows {ids_shown}, whose id occurs more than once in {path}, hold only the {name} occurrence"
                why = "duplicates: the contributions must be added up, yours overwrite each other (set instead of add)"
                yield Explanation("scatter", what, why, None)
                return


def _contributions(lab, i, k, several, order):
    """The contributions of the last (order -1) or first occurrence of each id in `several`."""
    here = lab.evidence
    table, ids = here.inputs[i], here.given[k].copy()
    flat = ids.ravel()
    for new, row in enumerate(several):
        flat[np.flatnonzero(flat == row)[::order][0]] = len(table) + new
    inputs, given = list(here.inputs), list(here.given)
    inputs[i], given[k] = np.concatenate([table, table[several]]), flat.reshape(ids.shape)
    there = lab.at(("copied rows", i, k, order), inputs=inputs, given=given)
    if there is None or there.truth[i].shape != inputs[i].shape:
        return None
    return there.truth[i][len(table) :]
