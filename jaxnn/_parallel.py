"""Where results live on a mesh of devices with Explicit axes, which `jax.make_mesh` makes by default.

On such a mesh an array's type says how it is sharded, and JAX asks wherever an operation leaves that open. The answers:
the batch, the first axis, is sharded, so each device has its own examples; parameters are whole on every device. Arrays
made for examples live with them, and a gradient, summed over the examples, lives where its parameter does.

Without such a mesh (on one device, or with Auto axes, where XLA decides) all of these leave the program unchanged.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharding_like(like, x) -> NamedSharding | None:
    """The sharding of `like` on the mesh of x, for `out_sharding=`: a gradient gets its parameter's."""
    return _sharding(x, _spec(like))


def sharding_of_rows(ids) -> NamedSharding | None:
    """The sharding of a table's rows at these ids, with one axis more than ids: each row is where its id is."""
    return _sharding(ids, (*_spec(ids), None))


def is_sharded(x) -> bool:
    """Whether each device of such a mesh has only a part of x."""
    sharding = sharding_like(x, x)
    return sharding is not None and any(sharding.spec)


def beside(a: jax.Array, x, axis: int = 0) -> jax.Array:
    """a with its first axis sharded like this axis of x."""
    sharding = _sharding(x, (_spec(x)[axis], *(None,) * (jnp.ndim(a) - 1)))
    return a if sharding is None else jax.sharding.reshard(a, sharding)


def reshaped(x: jax.Array, *shape: int) -> jax.Array:
    """x.reshape(shape) with the first axis sharded as before; JAX infers that only for the simplest reshapes."""
    sharding = _sharding(x, (_spec(x)[0], *(None,) * (len(shape) - 1)))
    return jnp.reshape(x, shape, out_sharding=sharding)


def row(x: jax.Array, i) -> jax.Array:
    """Row i of x, (1, ...), on every device."""
    sharding = _sharding(x, (None,) * x.ndim)
    if sharding is None:
        return jax.lax.dynamic_index_in_dim(x, i)
    return x.at[jnp.asarray(i)[None]].get(out_sharding=sharding)


def bernoulli(key: jax.Array, p: jax.Array, x: jax.Array) -> jax.Array:
    """`jax.random.bernoulli` with x's shape, the same numbers on any mesh; each device keeps its part's."""
    sharding = sharding_like(x, x)
    if sharding is None:
        return jax.random.bernoulli(key, p, x.shape)
    # What bernoulli does; jax 0.8's has no out_sharding.
    return jax.random.uniform(key, x.shape, p.dtype, out_sharding=sharding) < p


def by_device(f: Callable[..., tuple[Any, Any]], examples: tuple, whole: tuple = ()) -> tuple[Any, Any]:
    """f(*examples, *whole) -> (results, sums), calculated on each device for its own examples.

    For loops and indices along the batch, for which every device would otherwise fetch the examples of all the others.
    Arrays in `examples` and results have the batch first and are sharded like the first of them; those in `whole` are
    whole on every device. sums, over the examples, are added up over the devices.
    """
    first = jax.tree.leaves(examples)[0]
    sharding = sharding_like(first, first)
    if sharding is None or sharding.spec[0] is None:
        return f(*examples, *whole)
    devices = sharding.spec[0]

    def of_one_device(examples, whole):
        results, sums = f(*examples, *whole)
        return results, jax.tree.map(lambda a: jax.lax.psum(a, devices), sums)

    specs = PartitionSpec(devices), PartitionSpec()
    run = jax.shard_map(of_one_device, mesh=sharding.mesh, in_specs=specs, out_specs=specs, check_vma=False)
    return run(jax.tree.map(lambda a: beside(a, first), examples), whole)


def _sharding(x, spec) -> NamedSharding | None:
    mesh = jax.typeof(x).sharding.mesh
    if AxisType.Explicit not in mesh.axis_types:
        return None
    if not isinstance(x, Tracer):
        mesh = x.sharding.mesh  # outside jit a new array needs the devices themselves
    return NamedSharding(mesh, PartitionSpec(*spec))


def _spec(x) -> tuple:
    return tuple(jax.typeof(x).sharding.spec)
