"""Steps, epochs, evaluation and files of parameters."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnn import get_loss, l2_derivative, models
from jaxnn.combinators import serial
from jaxnn.layer import Ctx, Layer
from jaxnn.optimizers import adam, global_norm, sgd
from jaxnn.schedules import cosine
from jaxnn.training import (
    Batch,
    Diverged,
    accuracy,
    confusion_matrix,
    evaluate,
    fit,
    load_tree,
    loss_and_gradient,
    predict,
    r_squared,
    root_mean_square_error,
    save_tree,
    scale_pixels,
    start,
    train_step,
)
from jaxnn.training.fit import Examples
from jaxnn.training.loop import Step, run_steps
from jaxnn.training.rows import batches, gather, on_device, shuffled

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(53, 4)).astype(np.float32)
Y = (X[:, 0] * X[:, 1] > 0).astype(np.int32)
LOSS = get_loss("softmax_cross_entropy_with_integer_labels")
MODEL = models.mlp((16,), 2)
DROPPING = models.mlp((16,), 2, dropout=0.5)
OPTIMIZER = adam(1e-2)


def run(epochs=2, data=(X, Y), model=MODEL, optimizer=OPTIMIZER, loss=LOSS, train_state=None, batch_size=8, **more):
    if train_state is None:
        train_state = start(KEY, model, optimizer, (1, *data[0].shape[1:]))
    return fit(
        model, data, train_state, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size, **more
    )


def equal(a, b):
    return all(bool((x == y).all()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.quick
def test_a_step_has_the_gradient_that_jax_grad_has():
    train_state = start(KEY, MODEL, OPTIMIZER, X.shape)
    batch = Batch(jnp.asarray(X), jnp.asarray(Y), jnp.arange(53) % 3)

    def objective(params):
        return LOSS.value(batch.y, MODEL.forward(params, train_state.state, batch.x, Ctx())[0], batch.weights)

    ours = jax.jit(lambda params: loss_and_gradient(MODEL, LOSS, params, train_state.state, batch, Ctx()))
    value, _, grads = ours(train_state.params)
    expected, expected_grads = jax.jit(jax.value_and_grad(objective))(train_state.params)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, expected_grads)


def test_the_penalty_is_added_to_the_gradient():
    optimizer = sgd(0.5)
    train_state = start(KEY, MODEL, optimizer, X.shape)
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    step = functools.partial(train_step, MODEL, LOSS, optimizer, train_state, batch, KEY)
    plain, _ = step()
    penalised, record = step(functools.partial(l2_derivative, lambda_=0.1))
    w, w0 = penalised.params[1]["w"], train_state.params[1]["w"]
    np.testing.assert_allclose(w, plain.params[1]["w"] - 0.5 * 0.1 * w0, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(penalised.params[1]["b"], plain.params[1]["b"])
    assert float(record.rate) == 0.5
    _, _, grads = loss_and_gradient(MODEL, LOSS, train_state.params, train_state.state, batch, Ctx())
    whole = jax.tree.map(jnp.add, grads, l2_derivative(train_state.params, 0.1))
    np.testing.assert_allclose(record.gradient_norm, global_norm(whole), rtol=1e-5)


def test_an_epoch_is_the_steps_one_by_one():
    """Two epochs of the compiled scan against a Python loop of train_step on the real, unpadded batches."""
    optimizer = sgd(0.1)
    train_state = start(KEY, DROPPING, optimizer, X.shape)
    one_step = jax.jit(functools.partial(train_step, DROPPING, LOSS, optimizer))
    *_, record = run(2, model=DROPPING, optimizer=optimizer, train_state=train_state, batch_size=53 // 2 + 1)
    losses, norms = [], []
    for epoch in range(2):
        shuffle_key, step_key = jax.random.split(jax.random.fold_in(train_state.key, epoch))
        order, losses, norms = shuffled(shuffle_key, 53), [], []
        for i, rows in enumerate((order[:27], order[27:])):
            weights = jnp.ones(27)
            if i == 1:  # the same shape, or dropout draws another mask
                rows, weights = np.append(rows, order[0]), weights.at[26].set(0)
            batch = Batch(jnp.asarray(X[rows]), jnp.asarray(Y[rows]), weights)
            train_state, step = one_step(train_state, batch, jax.random.fold_in(step_key, i))
            losses.append(float(step.loss) * float(weights.sum()))
            norms.append(float(step.gradient_norm))
    np.testing.assert_allclose(record.gradient_norm, np.mean(norms), rtol=1e-5)
    found, expected = record.train_state.params, train_state.params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)
    np.testing.assert_allclose(record.loss, sum(losses) / 53, rtol=1e-5)
    assert record.epoch == 2
    assert int(record.train_state.opt_state.step) == 4


def test_padding_changes_nothing():
    """The last batch filled up with examples of weight 0 against the same batch as it is."""
    train_state = start(KEY, MODEL, OPTIMIZER, X.shape)
    one_step = jax.jit(functools.partial(train_step, MODEL, LOSS, OPTIMIZER))
    bare, _ = one_step(train_state, Batch(jnp.asarray(X[:5]), jnp.asarray(Y[:5])), KEY)
    padded, _ = one_step(train_state, Batch(jnp.asarray(X[:8]), jnp.asarray(Y[:8]), jnp.arange(8) < 5), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), bare.params, padded.params)


def test_dropout_works_in_training_and_rests_in_evaluation():
    train_state = start(KEY, DROPPING, OPTIMIZER, X.shape)
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    _, step = jax.jit(functools.partial(train_step, DROPPING, LOSS, OPTIMIZER))(train_state, batch, KEY)
    forward = jax.jit(DROPPING.forward)
    dropped, _, _ = forward(train_state.params, train_state.state, batch.x, Ctx(train=True, key=KEY))
    whole, _, _ = forward(train_state.params, train_state.state, batch.x, Ctx())
    np.testing.assert_allclose(step.loss, LOSS.value(Y, dropped), rtol=1e-5)
    assert abs(float(step.loss) - float(LOSS.value(Y, whole))) > 1e-3
    said = predict(DROPPING, train_state.params, train_state.state, X, batch_size=20)
    np.testing.assert_allclose(said, whole, rtol=1e-5, atol=1e-6)


def test_the_model_s_state_is_carried_along():
    def forward(params, state, x, ctx):
        return x, state + 1, None

    counting = serial(
        Layer(lambda key, in_shape: (in_shape, {}, jnp.float32(0)), forward, lambda params, cache, dy: ({}, dy)), MODEL
    )
    *_, record = run(2, model=counting)
    assert float(record.train_state.state[0]) == 14


def test_parameters_and_randomness_have_keys_of_their_own():
    a, b = start(KEY, MODEL, OPTIMIZER, X.shape), start(jax.random.key(1), MODEL, OPTIMIZER, X.shape)
    assert not equal(a.params[1]["w"], b.params[1]["w"])
    keys = [jax.random.key_data(key).tolist() for key in (KEY, a.key, b.key)]
    assert len({tuple(key) for key in keys}) == 3
    _, direct, _ = MODEL.init(a.key, X.shape)
    assert not equal(direct[1]["w"], a.params[1]["w"])


def test_same_key_same_numbers_and_training_on_is_training_on():
    model = DROPPING
    first, second = run(3, model=model), run(3, model=model)
    a, b = list(first), list(second)
    assert [r.loss for r in a] == [r.loss for r in b]
    assert equal(a[-1].train_state.params, b[-1].train_state.params)
    *_, resumed = run(2, model=model, train_state=a[0].train_state)
    assert resumed.epoch == 3
    assert equal(resumed.train_state.params, a[-1].train_state.params)
    other = start(jax.random.key(1), model, OPTIMIZER, X.shape)
    *_, different = run(3, model=model, train_state=other)
    assert different.loss != a[-1].loss


def test_records_stay_readable_after_the_next_epoch():
    records = list(run(3))
    assert all(np.isfinite(leaf).all() for r in records for leaf in jax.tree.leaves(r.train_state.params))
    assert not equal(records[0].train_state.params, records[1].train_state.params)


def test_a_network_learns_and_the_caller_may_stop():
    records = run(200, validation=(X, Y), metrics={"accuracy": accuracy}, batch_size=16)
    best = next(itertools.dropwhile(lambda r: r.validation["accuracy"] < 0.95, records))
    assert best.epoch < 150
    assert best.validation.keys() == {"loss", "accuracy"}
    assert best.to_dict().keys() == set(best._fields) - {"train_state"}


def test_an_epoch_donates_its_buffers():
    train_state = start(KEY, MODEL, OPTIMIZER, X.shape)
    arguments = (train_state, (on_device(X), jnp.asarray(Y)), batches(53, 8), KEY)
    lowered = run_steps.lower(Step(MODEL, LOSS, OPTIMIZER), Examples(lambda x: x), *arguments)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((train_state.params, train_state.opt_state)))
    assert memory.alias_size_in_bytes >= state_bytes


def test_equal_steps_on_equal_batches_compile_once():
    """Trainings one after the other with the same model, optimizer and preparation share one compiled loop."""
    traced = []

    def prepare(x):
        traced.append(x.shape)
        return x

    def steps(data, rows):
        arguments = (start(KEY, MODEL, OPTIMIZER, X.shape), data, rows, KEY)
        return run_steps(Step(MODEL, LOSS, OPTIMIZER), Examples(prepare), *arguments)

    data = on_device(X), jnp.asarray(Y)
    first, again = steps(data, batches(53, 8)), steps(data, batches(53, 8))
    assert traced == [(8, 4)]
    assert equal(first[0].params, again[0].params)
    steps(data, batches(53, 9))
    assert traced == [(8, 4), (9, 4)]


def test_bytes_are_gathered_as_words_and_come_back_as_bytes():
    for shape in ((6, 4, 2), (6, 3), (6, 5, 5)):
        images = RNG.integers(0, 256, shape).astype(np.uint8)
        rows = on_device(images)
        assert (rows.words.dtype == jnp.uint32) == (np.prod(shape[1:]) % 4 == 0)
        np.testing.assert_array_equal(gather(rows, jnp.array([5, 0, 0])), images[[5, 0, 0]])
    np.testing.assert_array_equal(gather(on_device(X), jnp.array([5, 0])), X[[5, 0]])


@pytest.mark.quick
def test_every_example_comes_once():
    indices, weights = batches(53, 8, shuffled(KEY, 53))
    assert indices.shape == weights.shape == (7, 8)
    assert sorted(indices[weights == 1]) == list(range(53))
    assert weights.sum() == 53


def test_images_of_bytes_need_a_preparation():
    images = RNG.integers(0, 17, (20, 8, 8)).astype(np.uint8)
    labels = np.arange(20, dtype=np.int32) % 2
    with pytest.raises(ValueError, match=r"x has dtype uint8; pass prepare=scale_pixels\(255\)"):
        next(run(data=(images, labels)))
    [record] = run(1, data=(images, labels), prepare=scale_pixels(16))
    params, state = record.train_state.params, record.train_state.state
    y = predict(MODEL, params, state, images, prepare=scale_pixels(16), batch_size=7)
    direct, _, _ = jax.jit(MODEL.forward)(params, state, jnp.asarray(images / np.float32(16)), Ctx())
    np.testing.assert_allclose(y, direct, rtol=1e-5, atol=1e-6)


@pytest.mark.quick
def test_evaluate_is_the_loss_of_all_examples():
    train_state = start(KEY, MODEL, OPTIMIZER, X.shape)
    params, state = train_state.params, train_state.state
    found = evaluate(MODEL, params, state, (X, Y), LOSS, {"accuracy": accuracy}, batch_size=10)
    y, _, _ = jax.jit(MODEL.forward)(params, state, jnp.asarray(X), Ctx())
    np.testing.assert_allclose(found["loss"], LOSS.value(Y, y), rtol=1e-5)
    assert found["accuracy"] == np.mean(np.argmax(y, -1) == Y)


def test_divergence_names_the_step_and_keeps_the_last_good_parameters():
    optimizer = sgd(lambda step: jnp.where(step < 9, 0.01, 1e30))  # breaks in the second epoch: 7 steps each
    records = run(5, optimizer=optimizer)
    good = next(records)
    with pytest.raises(Diverged, match=r"the loss became .* at epoch 2, step [4-7] of 7; .*smaller rate") as error:
        list(records)
    assert equal(error.value.train_state.params, good.train_state.params)


def test_divergence_in_the_very_last_step():
    optimizer = sgd(lambda step: jnp.where(step < 6, 0.01, jnp.inf))
    with pytest.raises(Diverged, match=r"a parameter became infinite or NaN at epoch 1, step 7 of 7"):
        list(run(1, optimizer=optimizer))


def test_wrong_data_is_an_error_before_the_first_step():
    with pytest.raises(ValueError, match="same number of examples"):
        next(run(data=(X, Y[:-1])))
    with pytest.raises(ValueError, match="same number of examples"):
        next(run(data=(X[:0], Y[:0])))
    with pytest.raises(ValueError, match="labels from 0 to 7"):
        next(run(data=(X, Y * 7)))
    with pytest.raises(ValueError, match="labels from 0 to 7"):
        next(run(validation=(X, Y * 7)))
    with pytest.raises(ValueError, match="y_true has shape"):
        next(run(data=(X, Y), loss=get_loss("mse")))
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=f"batch_size = {wrong}, expected a whole number"):
            next(run(batch_size=wrong))  # pyright: ignore[reportArgumentType]
    broken = X.copy()
    broken[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"fit: train has x\[7, 2\] = nan"):
        next(run(data=(broken, Y)))
    with pytest.raises(ValueError, match=r"unknown loss 'mze'; did you mean 'mse'"):
        next(run(loss="mze"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="start draws random numbers and needs a key"):
        start(None, MODEL, OPTIMIZER, X.shape)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="predict: x has shape"):
        predict(MODEL, {}, (), X[:0])
    with pytest.raises(ValueError, match="white = 0"):
        scale_pixels(0)


def test_metrics():
    scores = np.array([[1.0, 2.0, 0.0], [5.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    assert accuracy([1, 0, 0], scores) == pytest.approx(2 / 3)
    assert accuracy(np.eye(3)[[1, 0, 0]], scores) == pytest.approx(2 / 3)
    assert confusion_matrix([1, 0, 0], scores, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    y = np.array([[1.0], [2.0], [3.0]])
    assert root_mean_square_error(y, y + 2) == 2
    assert r_squared(y, y) == 1
    assert r_squared(y, np.full((3, 1), 2.0)) == 0
    assert np.isnan(r_squared(np.ones(3), np.ones(3)))
    two = np.array([[0.0, 100.0], [2.0, 102.0]])  # the means of the columns differ: around one mean R² would be near 1
    np.testing.assert_allclose(r_squared(two, two + 1), 1 - 4 / 4)
    for metric in (r_squared, root_mean_square_error):
        with pytest.raises(ValueError, match=r"y_pred has shape \(3, 1\), but y_true has \(3,\)"):
            metric(np.ones(3), y)
    with pytest.raises(ValueError, match="classes >= 2"):
        accuracy([1, 1, 1], y)
    with pytest.raises(ValueError, match="outside 0 to 1"):
        confusion_matrix([0, -1], [0, 1], 2)


def test_parameters_survive_a_file(tmp_path):
    tree = {"params": ({"w": jnp.ones((2, 3)), "b": jnp.arange(3, dtype=jnp.bfloat16)}, {}), "step": jnp.int32(7)}
    save_tree(tmp_path / "p.npz", tree)
    back = load_tree(tmp_path / "p.npz", jax.eval_shape(lambda: tree))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert equal(tree, back)
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [leaf.dtype for leaf in jax.tree.leaves(tree)]
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_training_goes_on_from_a_file(tmp_path):
    first, second = run(2)
    save_tree(tmp_path / "t.npz", first.train_state)
    restored = load_tree(tmp_path / "t.npz", start(jax.random.key(5), MODEL, OPTIMIZER, X.shape))
    [again] = run(1, train_state=restored)
    assert again.epoch == 2
    assert again.loss == second.loss
    assert equal(again.train_state.params, second.train_state.params)


def test_a_file_of_parameters_that_does_not_fit(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_tree(path, {})
    save_tree(path, {"w": jnp.ones(3), "extra": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"\['b'\] is missing; \['extra'\] is not expected; \['w'\] has shape \(3,\)"):
        load_tree(path, {"w": jnp.ones(4), "b": jnp.ones(1)})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"p.npz: not a complete \.npz file"):
        load_tree(path, {"w": jnp.ones(3)})


def test_the_rate_follows_its_schedule():
    steps = 2 * 7
    records = list(run(2, optimizer=adam(cosine(1e-2, steps))))
    np.testing.assert_allclose(records[0].rate, float(cosine(1e-2, steps)(6)), rtol=1e-6)
    np.testing.assert_allclose(records[1].rate, float(cosine(1e-2, steps)(13)), rtol=1e-6)
