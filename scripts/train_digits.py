"""Train a multilayer perceptron on the packaged handwritten digits: `python scripts/train_digits.py`.

Every gradient is calculated by the library's own backward passes. It takes a few seconds on a laptop, gets more than
97 % of the held-out fifth right, and writes a run folder: metrics, parameters and figures.
"""

import argparse
import json
import math
from pathlib import Path

import jax

from jaxnn import adam, datasets, models, plots, schedules
from jaxnn.training import accuracy, confusion_matrix, fit, predict, save_tree, scale_pixels, start

BATCH = 32
scale = scale_pixels(16)  # grey levels 0 … 16 become 0 … 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="the run folder (default: runs/digits)")
    args = parser.parse_args()

    data_key, train_key = jax.random.split(jax.random.key(args.seed))
    _, split_key = jax.random.split(data_key)  # as `jaxnn train` does, for the same split
    train, test = datasets.split(split_key, datasets.digits(), 0.2)

    model = models.mlp((256, 128), n_out=10, dropout=0.2)
    steps = args.epochs * math.ceil(len(train.x) / BATCH)
    optimizer = adam(schedules.cosine(2e-3, steps))
    train_state = start(train_key, model, optimizer, train.x.shape)

    records = []
    for record in fit(
        model,
        (train.x, train.y),
        train_state,
        loss="softmax_cross_entropy_with_integer_labels",
        optimizer=optimizer,
        epochs=args.epochs,
        batch_size=BATCH,
        validation=(test.x, test.y),
        metrics={"accuracy": accuracy},
        prepare=scale,
    ):
        train_state = record.train_state
        records.append(record.to_dict())
        right = record.validation["accuracy"]
        print(f"epoch {record.epoch:2}  loss {record.loss:.4f}  test accuracy {100 * right:.2f} %")

    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    save_tree(args.out / "params.npz", train_state.params)
    scores = predict(model, train_state.params, train_state.state, test.x, prepare=scale)
    matrix = confusion_matrix(test.y, scores, len(test.classes))
    figures = {
        "curves": plots.curves(records),
        "confusion": plots.confusion(matrix, test.classes),
        "mistakes": plots.mistakes(test.x, test.y, scores, test.classes),
        "weights": plots.weights(train_state.params[1]["w"], test.x.shape[1:]),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png")
    print(f"metrics, parameters and figures are in {args.out}")
    print(f"test accuracy {100 * accuracy(test.y, scores):.2f} %")


if __name__ == "__main__":
    main()
