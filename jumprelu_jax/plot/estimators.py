"""How straight-through estimators learn a threshold: a toy of one latent.

Half of the tokens have a feature of strength s in one dimension; the latent
reads z = s + noise and its decoder is 1. The loss of one token jumps as the
threshold passes its z and is flat elsewhere, so its gradient is 0; the expected
loss is smooth, and its gradient is what the kernel estimates (arXiv:2407.14435,
Eqs. 13 to 15, the rectangle). A wide kernel is biased, a narrow one noisy.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import functools

import jax
from jax import numpy as jnp
from matplotlib import figure as mpl_figure
import numpy as np

from jumprelu_jax import finished
from jumprelu_jax import ops
from jumprelu_jax.plot import style

PRESENT = 0.5  # share of tokens that have the feature
STRENGTH, STRENGTH_SPREAD, NOISE = 1.0, 0.2, 0.25  # of normal distributions
SPARSITY_COEFF = 0.15
BANDWIDTHS = (0.03, 0.2, 0.8)

_FEW = 16  # tokens whose loss is drawn, to show its jumps
_BATCHES, _ROWS = 256, 1024
_THRESHOLDS = np.linspace(0.05, 1.6, 125)


def expected_loss(thresholds: np.ndarray) -> np.ndarray:
  """Returns E (s - f)^2 + lambda E L0 at thresholds, by integration over z."""
  z = np.linspace(-3, 5, 16_001)
  density, strength, variance = _parts(z)
  on = density * ((strength - z) ** 2 + variance + SPARSITY_COEFF)
  off = density * (strength**2 + variance)
  # Off below the threshold, on above it.
  on_below, off_below = (_integral(part.sum(axis=0), z) for part in (on, off))
  change = np.interp(thresholds, z, off_below - on_below)
  return on_below[-1] + change


def expected_gradient(thresholds: np.ndarray) -> np.ndarray:
  """Returns d/dthreshold of `expected_loss`: Eq. 13 at the midpoint.

  Sum over tokens with and without the feature of p(t) (2 t E[s | z = t] - t^2 -
  lambda), t the threshold.
  """
  t = np.asarray(thresholds)
  density, strength, _ = _parts(t)
  return np.sum(density * (2 * t * strength - t**2 - SPARSITY_COEFF), axis=0)


def sample(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Returns strengths and pre-activations of `rows` tokens, float32."""
  rng = np.random.default_rng(seed)
  strength_B = rng.normal(STRENGTH, STRENGTH_SPREAD, rows)
  strength_B *= rng.random(rows) < PRESENT
  z_B = strength_B + rng.normal(0, NOISE, rows)
  return strength_B.astype('float32'), z_B.astype('float32')


def loss(
  threshold: jax.Array,
  strength_B: jax.Array,
  z_B: jax.Array,
  bandwidth: jax.Array | float,
) -> jax.Array:
  """Returns the mean loss of tokens; its gradient is the estimate.

  Args:
    threshold: scalar.
    strength_B: what is to be predicted.
    z_B: the latent's pre-activations.
    bandwidth: of the rectangle.
  """
  pre_BM, threshold_M = z_B[:, None], threshold[None]
  f_B = ops.jumprelu(pre_BM, threshold_M, bandwidth)[:, 0]
  gate_B = ops.step(pre_BM, threshold_M, bandwidth)[:, 0]
  return jnp.mean((strength_B - f_B) ** 2 + SPARSITY_COEFF * gate_B)


@functools.partial(jax.jit, static_argnames='fn')
def _at_all(fn, thresholds, strength_B, z_B, bandwidth):
  """Returns fn at each threshold."""
  each = jax.vmap(fn, in_axes=(0, None, None, None))
  return each(thresholds, strength_B, z_B, bandwidth)


_GRADIENT = jax.grad(loss)


def estimates(bandwidth: float) -> np.ndarray:
  """Returns the kernel's estimates [batches, thresholds] of a bandwidth."""
  thresholds = jnp.asarray(_THRESHOLDS, 'float32')
  return np.stack([
    _at_all(_GRADIENT, thresholds, *sample(_ROWS, seed), bandwidth)
    for seed in range(_BATCHES)
  ])  # fmt: skip


def table_of() -> list[dict[str, object]]:
  """Returns what is drawn, by threshold.

  Returns:
    Rows of `panel` 'loss' (the expectation, and a mean over a few tokens),
    'gradient' (of the expectation, and the mean over batches of the kernel's
    estimate by bandwidth), 'noise' (the standard deviation of that estimate
    from batch to batch of 1,024 rows).
  """
  thresholds = jnp.asarray(_THRESHOLDS, 'float32')
  few = _at_all(loss, thresholds, *sample(_FEW), 1.0)
  curves = {
    ('loss', 'expected'): expected_loss(_THRESHOLDS),
    ('loss', f'mean of {_FEW} tokens'): few,
    ('gradient', 'expected'): expected_gradient(_THRESHOLDS),
  }
  for bandwidth in BANDWIDTHS:
    found = estimates(bandwidth)
    curves['gradient', f'bandwidth {bandwidth:g}'] = found.mean(axis=0)
    curves['noise', f'bandwidth {bandwidth:g}'] = found.std(axis=0, ddof=1)
  return [
    {'panel': panel, 'curve': name, 'threshold': float(t), 'value': float(v)}
    for (panel, name), values in curves.items()
    for t, v in zip(_THRESHOLDS, values, strict=True)
  ]


def draw(table: Sequence[Mapping[str, object]]) -> mpl_figure.Figure:
  """Draws the loss, its gradient with the estimates, and their noise."""
  titles = {
    'loss': 'Loss',
    'gradient': 'Its gradient, and estimates',
    'noise': f'Deviation, batches of {_ROWS:,}',
  }
  names = list(dict.fromkeys(row['curve'] for row in table))
  lines = style.lines(sorted(names, key=lambda name: name != 'expected'))
  with style.look():
    figure = style.figure(style.PAGE, 2.3)
    for panel, ax in zip(titles, figure.subplots(1, 3), strict=True):
      rows = [row for row in table if row['panel'] == panel]
      for (name,), curve in finished.groups(rows, ('curve',)).items():
        look = lines[name]
        ax.plot(
          [row['threshold'] for row in curve],
          [row['value'] for row in curve],
          color=look.color,
          linestyle=look.linestyle,
          marker=look.marker,
          markevery=16,
          drawstyle='steps-post' if 'tokens' in name else 'default',
        )
      ax.set(title=titles[panel], xlabel='Threshold', xlim=(0, None))
    style.legend(figure, {name: lines[name] for name in names}, [])
  return figure


def _parts(z):
  """Density, mean and variance of s given z: two rows, absent and present."""
  spread = STRENGTH_SPREAD**2 + NOISE**2
  gain = STRENGTH_SPREAD**2 / spread
  absent = (1 - PRESENT) * _normal(z, 0, NOISE)
  present = PRESENT * _normal(z, STRENGTH, np.sqrt(spread))
  strength = STRENGTH + gain * (z - STRENGTH)
  variance = np.array([[0.0], [gain * NOISE**2]])
  return (
    np.stack([absent, present]),
    np.stack([np.zeros_like(z), strength]),
    variance,
  )


def _integral(y, x):
  """Returns the integral of y up to each x."""
  pieces = (y[1:] + y[:-1]) / 2 * np.diff(x)
  return np.concatenate([[0], np.cumsum(pieces)])


def _normal(x, mean, deviation):
  u = (x - mean) / deviation
  return np.exp(-(u**2) / 2) / (deviation * np.sqrt(2 * np.pi))
