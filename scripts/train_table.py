"""Predict a number from the other columns of a table.

python scripts/train_table.py --data table.csv --label price

Every gradient is calculated by the library's own backward passes. Features and labels are standardised with the means
and standard deviations of the training part only.
"""

import argparse
import math
from pathlib import Path

import jax
import numpy as np

from jaxnn import adam, datasets, models, plots, schedules
from jaxnn.training import fit, predict, r_squared, root_mean_square_error, start

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a CSV file of numbers, with a header line")
    parser.add_argument("--label", help="the column to predict (default: the last)")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("predictions.png"), help="the figure")
    args = parser.parse_args()

    split_key, train_key = jax.random.split(jax.random.key(0))
    train, test = datasets.split(split_key, datasets.csv_file(args.data, args.label, "regression"), 0.2)
    features, labels = datasets.fit_standardizer(train.x), datasets.fit_standardizer(train.y)
    x = datasets.standardize(features, train.x)
    y = datasets.standardize(labels, train.y)[:, None]

    model = models.mlp((64, 64), n_out=1)
    optimizer = adam(schedules.cosine(1e-3, args.epochs * math.ceil(len(x) / BATCH)))
    train_state = start(train_key, model, optimizer, x.shape)
    for record in fit(
        model, (x, y), train_state, loss="mse", optimizer=optimizer, epochs=args.epochs, batch_size=BATCH
    ):
        train_state = record.train_state
        print(f"epoch {record.epoch:2}  loss {record.loss:.4f}")

    y_pred = predict(model, train_state.params, train_state.state, datasets.standardize(features, test.x))
    said = labels.mean + labels.std * np.asarray(y_pred)[:, 0]  # in the label's unit
    plots.predictions(test.y, said).savefig(args.out)
    print(f"{args.out}: predicted against true values")
    print(f"test rmse {root_mean_square_error(test.y, said):.4g}, R² {r_squared(test.y, said):.4f}")


if __name__ == "__main__":
    main()
