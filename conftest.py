"""The whole session is strict: warnings are errors, nothing is promoted silently."""

import os

import matplotlib

matplotlib.use("Agg")
# Most of a session's time goes into compiling thousands of small programs, which splitting each among threads delays.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Code that is compiled in a tenth of the time and runs a little slower: nothing here runs for long.
# scripts/verify_gradients.py checks float32 and bfloat16 with the optimizations on.
jax.config.update("jax_disable_most_optimizations", True)
