"""SAEs of any class with every parameter random, and their loss in NumPy."""

import dataclasses

import jax
from jax import numpy as jnp
import numpy as np

from helpers import reference
from jumprelu_jax import objectives
from jumprelu_jax import ops

_SHAPES = {'W_enc': 'DM', 'W_dec': 'ME', 'b_dec': 'E', 'W_skip': 'DE'}


def random_of(
  cls, *, num_latents=16, widths=(6,), has_skip=False, seed=0, **static
):
  """An SAE of a class; rows of its decoder have any norm.

  Args:
    cls: a trained form.
    num_latents: of the SAE.
    widths: (D,), or a transcoder's (D, E).
    has_skip: whether it has a W_skip.
    seed: of the parameters.
    static: fields that are no arrays.
  """
  sizes = {'M': num_latents, 'D': widths[0], 'E': widths[-1]}
  rng = np.random.default_rng(seed)
  arrays = {}
  for field in dataclasses.fields(cls):
    is_array = field.metadata.get('pytree_node', True)
    if is_array and (field.name != 'W_skip' or has_skip):
      shape = [sizes[letter] for letter in _SHAPES.get(field.name, 'M')]
      arrays[field.name] = jnp.asarray(_draw(rng, field.name, shape), 'float32')
  defaults = {'use_pre_encoder_bias': len(widths) == 1}
  return cls(**arrays, **{'compute_dtype': 'float32'} | defaults | static)


def _draw(rng, name, shape):
  if name.endswith('threshold'):
    threshold = rng.uniform(0.15, 0.5, shape)
    return np.log(threshold) if name.startswith('log') else threshold
  return rng.normal(size=shape) * 0.4


def random_rows(d_model=6, count=80, seed=1):
  """Activations of non-zero mean."""
  x = np.random.default_rng(seed).normal(size=(count, d_model)) + 0.2
  return jnp.asarray(x, 'float32')


def float64_params(sae):
  """Its parameters by name, but for those that it lacks."""
  return {
    field.name: np.asarray(getattr(sae, field.name), np.float64)
    for field in dataclasses.fields(sae)
    if isinstance(getattr(sae, field.name), jax.Array)
  }


def loss_of(name, sae, rows, c, **options):
  """The loss of an objective, and what goes with it.

  Args:
    name: of the objective.
    sae: parameters.
    rows: (x_BD, y_BD), or x_BD.
    c: the coefficients, as a dict.
    options: `reconstruct` and `jump` of `objectives.evaluate`.
  """
  x_BD, y_BD = rows if isinstance(rows, tuple) else (rows, rows)
  return objectives.evaluate(
    options.get('reconstruct', objectives.whole),
    objectives.penalties(name),
    options.get('jump', ops.Jump()),
    sae,
    x_BD,
    y_BD,
    objectives.Coefficients(**c),
  )


def loss_and_gradients_of(name, sae, rows, c, **options):
  """`loss_of`, and its gradients by the SAE's parameters."""

  # Not jitted: JAX compiles each operation once for all tests.
  def loss_fn(sae):
    return loss_of(name, sae, rows, c, **options)

  return jax.value_and_grad(loss_fn, has_aux=True)(sae)


def assert_loss_and_gradients_equal(want, name, sae, rows, c, **options):
  """Asserts the value, and each parameter's gradient to 1e-5 of its largest.

  Args:
    want: parameters by name, float64 → the loss.
    name, sae, rows, c, options: as `loss_of`.
  """
  params = float64_params(sae)
  (loss, _), gradients = loss_and_gradients_of(name, sae, rows, c, **options)
  np.testing.assert_allclose(loss, want(params).real, rtol=1e-5)
  for param, expected in reference.gradient(want, params).items():
    assert_near(getattr(gradients, param), expected, param)


def assert_near(got, want, what):
  """Asserts that an array differs by less than 1e-5 of its largest element."""
  largest = np.abs(want).max()
  assert largest > 0, what
  np.testing.assert_allclose(
    got, want, rtol=0, atol=1e-5 * largest, err_msg=what
  )
