"""What the README says about speed, memory and the verifier, measured: `python -m benchmarks.NAME` in the repository.

epoch      an epoch of a perceptron beside jax.grad, PyTorch, Flax and scikit-learn
models     a training step of the CNN, the GPT and the LSTM beside jax.grad and PyTorch
fused      each rule whose backward beats jax.grad, beside jax.grad: temporaries and time
checkers   the verifier beside other gradient checkers on tests/corpus

Each prints its table, and with --write saves results/NAME.json. `python -m benchmarks.tables` then writes the tables
into the README. The peers are optional (pip install '.[bench]').
"""
