"""The whole session is strict: warnings are errors, nothing is promoted silently."""

import matplotlib

matplotlib.use("Agg")

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Code that is compiled in a tenth of the time and runs a little slower: nothing here runs for long.
# scripts/verify_gradients.py checks float32 and bfloat16 with the optimizations on.
jax.config.update("jax_disable_most_optimizations", True)
