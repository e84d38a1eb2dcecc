"""Figures: what is drawn is what was passed, and what cannot be drawn is refused.

Every figure is rendered once, since layout and missing glyphs warn only then, and warnings are errors here.
"""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.text import Text

from jaxnn import plots
from jaxnn.activations import ACTIVATIONS, hard_tanh, hard_tanh_derivative
from jaxnn.plots.style import COLOURS, spread

RNG = np.random.default_rng(0)


def rendered(figure) -> Any:
    figure.draw_without_rendering()
    return figure


def lines(ax) -> dict[str, Any]:
    """The labelled lines of a panel: label -> y."""
    return {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}


def test_importing_the_plots_imports_no_matplotlib():
    code = "import sys, jaxnn.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_figures_belong_to_nobody_else():
    sys.modules.pop("matplotlib.pyplot", None)
    plots.curves([RECORD])
    assert "matplotlib.pyplot" not in sys.modules


# ---------------------------------------------------------------- activations


def zones(ax):
    """The shaded ranges of a panel, from left to right."""
    edges = [path.vertices[:, 0] for path in ax.collections[0].get_paths()]
    return np.array(sorted((x.min(), x.max()) for x in edges if len(x)))


def test_activations_draw_value_and_derivative_and_shade_what_is_saturated():
    figure = rendered(plots.activations(["identity", "hard_tanh", "silu"]))
    identity, hard, silu = figure.axes
    x = hard.lines[-1].get_xdata()
    drawn = lines(hard)
    np.testing.assert_array_equal(drawn["f(x)"], hard_tanh(jnp.asarray(x)))
    np.testing.assert_array_equal(drawn["f′(x)"], hard_tanh_derivative(jnp.asarray(x)))
    assert [label.get_text() for label in figure.legends[0].get_texts()] == [
        "saturated: |f′(x)| < 0.05", "f(x)", "f′(x)",
    ]  # fmt: skip

    assert zones(identity).size == 0
    np.testing.assert_allclose(zones(hard), [[-8, -1], [1, 8]], rtol=1e-6)
    np.testing.assert_allclose(zones(silu), [[-8, -4.09]], atol=0.02)  # not at its minimum, -1.28


def test_activations_draw_every_activation_by_default():
    assert [ax.get_title() for ax in plots.activations().axes] == list(ACTIVATIONS)


def test_activations_refuse_unknown_names_and_none_at_all():
    with pytest.raises(ValueError, match="did you mean 'relu'"):
        plots.activations(["rellu"])
    with pytest.raises(ValueError, match="names is empty"):
        plots.activations([])


# ---------------------------------------------------------------- error curves

CURVES = plots.ErrorCurves(
    "f", "a note", "x", np.arange(1.0, 6.0),
    {"ours": np.array([0, 1e-7, 1e-7, 2e-7, 0]), "textbook": np.array([1e-3, 1.0, 1e9, np.inf, np.nan])},
)  # fmt: skip
TABLE = plots.ValueTable("g", "", ["x = 0", "x = 1"], {"ours": [("0", True), ("1", True)],
                                                       "textbook": [("0.5", False), ("1", True)]})  # fmt: skip


def test_error_curves_keep_zero_on_the_lower_edge_and_infinity_on_the_upper():
    figure = rendered(plots.error_curves([CURVES]))
    drawn = lines(figure.axes[0])
    np.testing.assert_allclose(drawn["ours"], [1e-10, 1e-7, 1e-7, 2e-7, 1e-10])
    np.testing.assert_allclose(drawn["textbook"], [1e-3, 1, 1e2, 1e4, 1e4])
    ticks = {label.get_text(): label.get_position()[1] for label in figure.axes[0].get_yticklabels()}
    assert (ticks["0"], ticks["inf, NaN"]) == (1e-10, 1e4)
    low, high = figure.axes[0].get_ylim()
    assert low < 1e-10
    assert high > 1e4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "textbook"]


def test_error_tables_mark_what_is_wrong():
    figure = rendered(plots.error_curves([CURVES, TABLE]))
    cells = figure.axes[1].tables[0].get_celld()
    assert [cells[0, j].get_text().get_text() for j in (1, 2)] == ["x = 0", "x = 1"]
    assert [cells[2, j].get_text().get_text() for j in range(3)] == ["textbook", "0.5 ✗", "1"]
    assert cells[2, 1].get_facecolor() != cells[2, 2].get_facecolor()
    colour = {line.get_label(): line.get_color() for line in figure.axes[0].lines}["textbook"]
    assert cells[2, 0].get_text().get_color() == colour


def test_error_curves_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"'ours' have shape \(4,\) and x \(5,\)"):
        plots.error_curves([CURVES._replace(errors={"ours": np.zeros(4)})])
    with pytest.raises(ValueError, match="1 outputs for 2 inputs"):
        plots.error_curves([TABLE._replace(outputs={"ours": [("0", True)]})])
    with pytest.raises(ValueError, match="no panels"):
        plots.error_curves([])


# ---------------------------------------------------------------- initializers


def test_init_variance_draws_each_line_and_names_its_end():
    he, zeros, ones = np.array([1.0, 0.9, 0.8]), np.array([1.0, 0, 0]), np.array([1.0, 1e30, np.inf])
    figure = rendered(
        plots.init_variance({"relu": {"he_normal": he, "he_uniform": he, "zeros": zeros}, "tanh": {"ones": ones}})
    )
    first, second = figure.axes
    np.testing.assert_array_equal(lines(first)["he_normal"], he)
    assert (first.get_title(), first.get_yscale(), first.get_xlim()) == ("relu", "log", (0, 2))
    assert {text.get_text() for text in first.texts} == {"he_normal", "he_uniform", "zeros ↓"}
    assert [text.get_text() for text in second.texts] == ["ones ↑"]
    style = {line.get_label(): (line.get_color(), line.get_linestyle()) for line in first.lines}
    assert style["he_normal"][0] == style["he_uniform"][0] != style["zeros"][0]
    assert (style["he_normal"][1], style["he_uniform"][1]) == ("-", "--")


def test_names_at_line_ends_do_not_overlap():
    figure = rendered(plots.init_variance({"relu": {f"line {i}": np.array([1.0, 0.9 + i / 1e3]) for i in range(12)}}))
    # Text's own extent: that of an annotation includes its leader.
    boxes = sorted((Text.get_window_extent(text) for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == 12
    assert all(low.y1 <= high.y0 for low, high in itertools.pairwise(boxes))


def test_spread_moves_as_little_as_needed():
    np.testing.assert_allclose(spread(np.array([0.2, 0.5, 0.8]), 0.1), [0.2, 0.5, 0.8])
    np.testing.assert_allclose(spread(np.array([1.0, 1.0, 0.0, 0.0]), 0.1), [0.9, 1.0, 0.0, 0.1])
    np.testing.assert_allclose(spread(np.array([0.5, 0.5, 0.5]), 0.2), [0.3, 0.5, 0.7])


def test_init_variance_refuses_lines_of_different_lengths():
    with pytest.raises(ValueError, match=r"\[\(2,\), \(3,\)\]"):
        plots.init_variance({"relu": {"a": np.ones(2)}, "tanh": {"a": np.ones(3)}})
    with pytest.raises(ValueError, match="expected one shape"):
        plots.init_variance({})


# ---------------------------------------------------------------- decision boundary


def by_first_coordinate(points):
    """Class 1 to the right of 0, half and half there."""
    right = 1 / (1 + np.exp(-50 * points[:, 0]))
    return np.stack([1 - right, right], axis=-1)


PLANE = plots.PlaneClassifier(
    "halves", np.array([[-1.0, -1], [-0.5, 1], [0.5, -1], [1, 1]]), np.array([0, 1, 1, 1]),
    {"epoch 1": by_first_coordinate, "epoch 9": lambda points: by_first_coordinate(points)[:, ::-1]},
)  # fmt: skip


def test_decision_boundary_colours_points_and_plane_by_class():
    figure = rendered(plots.decision_boundary([PLANE, PLANE._replace(name="again")]))
    assert [ax.get_title() for ax in figure.axes] == ["epoch 1", "epoch 9", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["halves", "", "again", ""]
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["75 %", "25 %", "75 %", "25 %"]
    ax = figure.axes[0]
    scatters: list[Any] = [scatter for scatter in ax.collections if isinstance(scatter, PathCollection)]
    points = {to_hex(scatter.get_facecolor()[0]).upper(): scatter.get_offsets() for scatter in scatters}
    np.testing.assert_allclose(points[COLOURS[0]], PLANE.x[:1])
    np.testing.assert_allclose(points[COLOURS[1]], PLANE.x[1:])
    assert ax.images[0].origin == "lower"
    [boundary] = {tuple(path.vertices[:, 0].round(3)) for path in ax.collections[0].get_paths()}
    assert set(boundary) == {0.0}
    background = ax.images[0].get_array()
    pale = [np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) / 2 + 0.5 for c in COLOURS[:2]]
    np.testing.assert_allclose(background[0, 0], pale[0], atol=1e-6)
    np.testing.assert_allclose(background[0, -1], pale[1], atol=1e-6)


def test_decision_boundary_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"'halves' has x of shape \(4, 3\)"):
        plots.decision_boundary([PLANE._replace(x=np.zeros((4, 3)))])
    with pytest.raises(ValueError, match="of 3 classes"):
        plots.decision_boundary([PLANE._replace(y=np.array([0, 1, 2, 0]))])
    with pytest.raises(ValueError, match="no rows"):
        plots.decision_boundary([])


# ---------------------------------------------------------------- optimizer paths


def test_optimizer_paths_draw_the_paths_and_the_minimum():
    path = RNG.normal(size=(30, 2))
    figure = rendered(
        plots.optimizer_paths(lambda a, b: a**2 + 9 * b**2, {"plain": {"sgd": path}, "other": {"adam": path[::-1]}},
                              (0.0, 0.0), (-2, -1), (2, 1))
    )  # fmt: skip
    for ax, name, expected in zip(figure.axes, ("sgd", "adam"), (path, path[::-1]), strict=True):
        [line] = [line for line in ax.lines if line.get_label() == name]
        np.testing.assert_array_equal(line.get_xydata(), expected)
        [star] = [line for line in ax.lines if line.get_marker() == "*"]
        assert star.get_xydata().tolist() == [[0, 0]]
        [dot] = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
        np.testing.assert_array_equal(dot.get_xydata(), expected[:1])
        assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 2), (-1, 1))
        assert [text.get_text() for text in ax.get_legend().get_texts()] == [name]
    with pytest.raises(ValueError, match=r"path of 'sgd' has shape \(30,\)"):
        plots.optimizer_paths(lambda a, b: a + b, {"plain": {"sgd": path[:, 0]}}, (0, 0), (-1, -1), (1, 1))


# ---------------------------------------------------------------- a training run

RECORD = {
    "epoch": 1, "loss": 2.0, "validation": {"loss": 2.5, "accuracy": 0.4}, "rate": 1e-3, "gradient_norm": 3.0,
    "seconds": 0.1, "examples_per_second": 1e4,
}  # fmt: skip


def test_curves_draw_losses_metrics_rate_and_gradient_norm():
    second = RECORD | {"epoch": 2, "loss": 0.1, "validation": {"loss": 0.3, "accuracy": 0.9}, "gradient_norm": 1.0}
    figure = rendered(plots.curves([RECORD, second]))
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "validation accuracy", "learning rate", "gradient norm"]
    loss, accuracy, rate, norm = map(lines, figure.axes)
    assert {name: list(y) for name, y in loss.items()} == {"training": [2.0, 0.1], "validation": [2.5, 0.3]}
    assert list(accuracy["validation"]) == [0.4, 0.9]
    assert list(rate["training"]) == [1e-3, 1e-3]
    assert list(norm["training"]) == [3.0, 1.0]
    assert [ax.get_yscale() for ax in figure.axes] == ["log", "linear", "linear", "linear"]
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2]


def test_curves_of_one_epoch_without_validation_and_of_a_negative_loss():
    figure = rendered(plots.curves([RECORD | {"validation": {}}]))
    assert [list(lines(ax)) for ax in figure.axes] == [["training"]] * 3
    negative = rendered(plots.curves([RECORD, RECORD | {"epoch": 2, "loss": -5.0}]))
    assert negative.axes[0].get_yscale() == "linear"


def test_curves_refuse_records_that_do_not_belong_together():
    with pytest.raises(ValueError, match="no records"):
        plots.curves([])
    with pytest.raises(ValueError, match=r"epoch 2 has \[\], that of epoch 1 \['accuracy', 'loss'\]"):
        plots.curves([RECORD, RECORD | {"epoch": 2, "validation": {}}])


@pytest.mark.parametrize("n", [2, 10, 26, 31])
def test_confusion_shows_counts_and_shares(n):
    matrix = np.diag(np.arange(1, n + 1))
    matrix[0, 1] = 3
    figure = rendered(plots.confusion(matrix, [f"c{i}" for i in range(n)]))
    ax = figure.axes[0]
    counts = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    expected = {(i, i): str(i + 1) for i in range(n)} | {(1, 0): "3"}  # x is the predicted class, y the true one
    assert counts == (expected if n <= 30 else {})
    share = ax.images[0].get_array()
    assert (share[0, 0], share[0, 1], share[1, 1]) == (0.25, 0.75, 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"c{i}" for i in range(n)]
    assert ax.get_title() == f"{n * (n + 1) // 2} of {n * (n + 1) // 2 + 3} right"


def test_confusion_of_a_class_without_examples_and_of_a_matrix_that_does_not_fit():
    figure = rendered(plots.confusion([[0, 0], [0, 5]], ["a", "b"]))
    assert figure.axes[0].images[0].get_array().tolist() == [[0, 0], [0, 1]]
    with pytest.raises(ValueError, match=r"shape \(2, 2\), expected \(3, 3\)"):
        plots.confusion(np.eye(2), ["a", "b", "c"])


# ---------------------------------------------------------------- mistakes

IMAGES = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
Y_TRUE = np.array([0, 1, 2, 0, 1])
# Right, a narrow mistake, the worst mistake, right, a mistake between: probabilities of the truth 0.42, 0.0, 0.12.
SCORES = np.array([[5.0, 0, 0], [0.3, 0.2, -1], [900, 0, 0], [1, 0, 0], [0, 0, 2]])


def test_mistakes_come_worst_first():
    figure = rendered(plots.mistakes(IMAGES, Y_TRUE, SCORES, ["cat", "dog", "owl"]))
    assert [ax.get_title() for ax in figure.axes] == [
        "true owl\nsaid cat (100 %)", "true dog\nsaid owl (79 %)", "true dog\nsaid cat (46 %)",
    ]  # fmt: skip
    for ax, i in zip(figure.axes, (2, 4, 1), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), IMAGES[i] / 29)
    assert figure.get_suptitle() == "the worst 3 of 3 mistakes in 5 images"
    assert len(plots.mistakes(IMAGES, Y_TRUE, SCORES, "abc", count=1).axes) == 1


def test_no_mistakes_are_said_to_be_none():
    figure = rendered(plots.mistakes(IMAGES, Y_TRUE, np.eye(3)[Y_TRUE], "abc"))
    assert [text.get_text() for text in figure.texts] == ["no mistakes in 5 images"]
    assert figure.axes == []


@pytest.mark.parametrize(("channels", "drawn"), [(1, (2, 3)), (3, (2, 3, 3))])
def test_mistakes_take_channels(channels, drawn):
    images = np.repeat(IMAGES[..., None], channels, -1)
    figure = rendered(plots.mistakes(images, Y_TRUE, SCORES, "abc"))
    assert figure.axes[0].images[0].get_array().shape == drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES[:, 0]}, r"images has shape \(5, 3\)"),
        ({"images": np.zeros((5, 2, 3, 2))}, r"images has shape \(5, 2, 3, 2\)"),
        ({"y_true": Y_TRUE[:4]}, r"y_true \(4,\)"),
        ({"scores": SCORES[:, :2]}, r"scores \(5, 2\)"),
        ({"classes": "ab"}, "2 classes"),
        ({"y_true": Y_TRUE + 1}, "from 1 to 3, expected class ids from 0 to 2"),
        ({"count": 0}, "count = 0"),
    ],
)
def test_mistakes_refuse_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        plots.mistakes(**({"images": IMAGES, "y_true": Y_TRUE, "scores": SCORES, "classes": "abc"} | change))


# ---------------------------------------------------------------- weights


def test_weights_are_the_columns_as_images_on_one_symmetric_scale():
    w = RNG.normal(size=(6, 11))
    w[3, 2] = -7
    *images, bar = rendered(plots.weights(w, (2, 3), count=10)).axes
    assert len(images) == 10
    for j, ax in enumerate(images):
        np.testing.assert_allclose(ax.images[0].get_array(), w[:, j].reshape(2, 3), rtol=1e-6)
        assert ax.images[0].get_clim() == (-7, 7)
    assert bar.get_ylabel() == "weight"


def test_weights_of_colour_images_stand_side_by_side():
    w = np.arange(12.0)[:, None]
    drawn = rendered(plots.weights(w, (2, 2, 3))).axes[0].images[0].get_array()
    np.testing.assert_array_equal(drawn, np.concatenate(list(np.moveaxis(w.reshape(2, 2, 3), 2, 0)), axis=1))


def test_weights_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"w has shape \(6, 2\) and image_shape is \(2, 2\)"):
        plots.weights(np.ones((6, 2)), (2, 2))
    with pytest.raises(ValueError, match="count = 0"):
        plots.weights(np.ones((6, 2)), (2, 3), count=0)


def test_weights_of_zero_have_a_scale():
    assert rendered(plots.weights(np.zeros((6, 2)), (2, 3))).axes[0].images[0].get_clim() == (-1, 1)


# ---------------------------------------------------------------- predictions


def test_predictions_draw_points_diagonal_and_residuals():
    truth, said = np.array([0.0, 1, 2, 3]), np.array([0.5, 1, 2, 5])
    scatter, histogram = rendered(plots.predictions(truth, said)).axes
    diagonal, points = scatter.lines
    np.testing.assert_array_equal(points.get_xydata(), np.stack([truth, said], -1))
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [5, 5]])
    assert sum(bar.get_height() for bar in histogram.patches) == 4
    assert histogram.get_title() == "mean 0.625, root mean square 1.03"


def test_predictions_of_several_outputs_and_of_what_does_not_fit():
    several = RNG.normal(size=(5, 9))
    figure = rendered(plots.predictions(several[:, :2], several[:, 2:4]))
    assert figure.axes[2].get_xlabel() == "true (output 2 of 2)"
    np.testing.assert_array_equal(figure.axes[2].lines[1].get_ydata(), several[:, 3])
    assert len(plots.predictions(several, several).axes) == 16
    with pytest.raises(ValueError, match=r"\(5, 2\) and y_pred \(5,\)"):
        plots.predictions(several[:, :2], several[:, 0])
    with pytest.raises(ValueError, match="inf or NaN"):
        plots.predictions([0.0, 1.0], [0.0, np.nan])


# ---------------------------------------------------------------- the gallery


@pytest.fixture
def gallery(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import plot_gallery

    return plot_gallery


def test_the_gallery_shows_where_the_textbook_dies(gallery):
    from figures.formula_errors import relu_table, sigmoid_panels

    value, slope = sigmoid_panels(10)
    assert value.errors["ours"].max() < 1e-6
    assert slope.errors["ours"].max() < 1e-6
    assert slope.errors["textbook"][slope.x > 30].min() == 1
    assert np.isnan(slope.errors["jax.grad of textbook"][slope.x < -99]).all()
    outputs = relu_table().outputs
    assert all(right for _, right in outputs["ours"])
    assert outputs["jax.grad of textbook"][1] == ("0.5", False)


@pytest.mark.slow
def test_the_gallery_shows_where_libraries_die_too(gallery):
    from figures.stability import cross_entropy_panels

    for part in cross_entropy_panels(8):
        assert part.errors["ours"].max() < 1e-6
        for name, errors in part.errors.items():
            assert name == "ours" or errors[part.x > 20].min() >= 1


def test_the_gallery_writes_what_it_is_asked_for(gallery, tmp_path, capsys):
    assert gallery.main(["--out", str(tmp_path / "new"), "--quick", "--only", "optimizer_paths"]) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["optimizer_paths.png"]
    assert "lowest after 20 steps" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gallery.main(["--only", "activation"])
    assert "invalid choice: 'activation'" in capsys.readouterr().err
