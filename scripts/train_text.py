"""Train a GPT on a text and generate text with it: `python scripts/train_text.py`.

Every gradient is calculated by the library's own backward passes. The default text is the source code of Python's
standard library; the last tenth is held out. It takes about four minutes on two CPU cores.

python scripts/train_text.py --data FILE-OR-FOLDER    any text
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from jaxnn import adamw, clip_by_global_norm, datasets, models, plots, schedules
from jaxnn.training import bits_per_byte, evaluate_text, fit_text, save_tree, start

WINDOW, BATCH = 128, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file or a folder (default: Python's standard library)")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--out", type=Path, default=Path("runs/text"), help="the run folder (default: runs/text)")
    args = parser.parse_args()

    text = datasets.standard_library() if args.data is None else datasets.text_files(args.data)
    vocabulary = datasets.byte_vocabulary()
    train, held_out = map(vocabulary.encode, text)
    print(f"a byte trigram model: {datasets.trigram_bits(text):.3f} bits per byte on the held-out text", flush=True)

    model = models.gpt(len(vocabulary.symbols), 128, 4, 4)  # features, blocks, heads
    schedule = schedules.warmup_cosine(5e-3, args.steps, args.steps // 20)
    adam = adamw(schedule, beta2=0.99, weight_decay=0.1, decays=lambda p: p.ndim > 2)  # the blocks' stacked matrices
    optimizer = clip_by_global_norm(adam, 1.0)
    train_state = start(jax.random.key(0), model, optimizer, (1, WINDOW))

    def held_out_bits(train_state, batches=None):
        nats = evaluate_text(model, train_state.params, train_state.state, held_out, window=WINDOW, batch_size=BATCH,
                             batches=batches)  # fmt: skip
        return bits_per_byte(nats, len(held_out), len(text.held_out))

    rows = []
    for record in fit_text(
        model, train, train_state, optimizer=optimizer, steps=args.steps, window=WINDOW, batch_size=BATCH, every=100
    ):
        train_state = record.train_state
        said, held = bits_per_byte(record.loss, len(train), len(text.train)), held_out_bits(train_state, batches=8)
        print(f"step {record.step:4}  bits per byte {said:.3f}  held out {held:.3f}", flush=True)
        rows.append({"step": record.step, "loss": said, "validation": {"loss": held},
                     "rate": record.rate, "gradient_norm": record.gradient_norm})  # fmt: skip

    args.out.mkdir(parents=True, exist_ok=True)
    params, state = train_state.params, train_state.state
    save_tree(args.out / "params.npz", params)
    plots.curves(rows).savefig(args.out / "curves.png")
    prompt = vocabulary.encode(b"\n")
    ids = models.generate(model, params, state, jax.random.key(1), prompt[None], 600, window=WINDOW, temperature=0.8)
    print(vocabulary.decode(np.asarray(ids[0])))
    print(f"parameters and curves are in {args.out}")
    print(f"held-out text: {held_out_bits(train_state):.3f} bits per byte")


if __name__ == "__main__":
    main()
