"""Why JumpReLU: a toy latent whose encoder also picks up other features.

As Figure 1 of arXiv:2407.14435, with our own numbers: half of the tokens have
the feature, with strength s; the encoder reads z = s + noise on all tokens. A
ReLU at zero fires on tokens without the feature; a bias that keeps it quiet
there takes from every strength; JumpReLU does neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import jax
from jax import numpy as jnp
from matplotlib import figure as mpl_figure
from matplotlib import patches
import numpy as np

from jumprelu_jax import finished
from jumprelu_jax import ops
from jumprelu_jax.plot import style

THRESHOLD = 1.5
STRENGTH, STRENGTH_SPREAD, NOISE = 3.0, 0.6, 0.6  # of normal distributions

_TOKENS = 200_000
_BINS = np.linspace(0, 6, 61)
_GRID = np.linspace(-2, 6, 401)


def _relu(z_B):
  return jax.nn.relu(z_B)


def _shifted_relu(z_B):
  return jax.nn.relu(z_B - THRESHOLD)


def _jumprelu(z_B):
  f_BM = ops.jumprelu(z_B[:, None], jnp.full(1, THRESHOLD), bandwidth=1.0)
  return f_BM[:, 0]


ACTIVATIONS = {
  'ReLU': _relu,
  'ReLU, bias shifted': _shifted_relu,
  'JumpReLU': _jumprelu,
}
# label, colour, hatch
_LOOKS = {
  'absent': ('feature absent', '#D55E00', '////'),
  'present': ('feature present', '#56B4E9', None),
}


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Tokens of the toy.

  Attributes:
    strength_B: the feature's, 0 where it is absent.
    z_B: what the encoder reads.
  """

  strength_B: np.ndarray
  z_B: np.ndarray


def sample() -> Tokens:
  """Returns the toy's tokens, always the same."""
  rng = np.random.default_rng(0)
  strength_B = rng.normal(STRENGTH, STRENGTH_SPREAD, _TOKENS).clip(min=0)
  strength_B[::2] = 0
  z_B = strength_B + rng.normal(0, NOISE, _TOKENS)
  return Tokens(strength_B.astype('float32'), z_B.astype('float32'))


def table_of() -> list[dict[str, object]]:
  """Returns what is drawn.

  Returns:
    For each activation function, rows of `curve` 'function' (x: z, y: f),
    'absent' and 'present' (x: middle of a bin of f > 0, y: share of all tokens
    in it), 'true' (the same of the strengths), 'absent_range' and
    'present_range' (x: where 95% of such z lie), 'false_positives' (y: share of
    the tokens without the feature that fire) and 'mean_error' (y: mean of f - s
    over the tokens with it).
  """
  tokens = sample()
  table = []
  for name, activation in ACTIVATIONS.items():
    f_grid = np.asarray(activation(jnp.asarray(_GRID, 'float32')))
    f_B = np.asarray(activation(jnp.asarray(tokens.z_B)))
    curves = {'function': (_GRID, f_grid), **_ranges()}
    curves |= _histograms(tokens, f_B)
    table += [
      {'activation': name, 'curve': curve, 'x': float(x), 'y': float(y)}
      for curve, (xs, ys) in curves.items()
      for x, y in zip(xs, ys, strict=True)
    ]
  return table


def draw(table: Sequence[Mapping[str, object]]) -> mpl_figure.Figure:
  """Draws the activation functions, and what they make of the tokens."""
  with style.look():
    figure = style.figure(style.PAGE, 3.6)
    above, below = figure.subplots(2, len(ACTIVATIONS), sharey='row')
    for name, top, bottom in zip(ACTIVATIONS, above, below, strict=True):
      rows = [row for row in table if row['activation'] == name]
      curves = {
        curve: ([r['x'] for r in of_one], [r['y'] for r in of_one])
        for (curve,), of_one in finished.groups(rows, ('curve',)).items()
      }
      (false_positives,) = curves['false_positives'][1]
      (mean_error,) = curves['mean_error'][1]
      top.set_title(
        f'{name}\n{false_positives:.0%} false positives\n'
        f'mean error {round(mean_error, 1) + 0.0:.1f}'
      )
      _draw_function(top, curves)
      _draw_histograms(bottom, curves)
    above[0].set_ylabel('Activation')
    below[0].set_ylabel('Share of tokens')
    above[1].set_xlabel('Pre-activation')
    below[1].set_xlabel('Activation, where the latent fires')
    _add_legend(figure)
  return figure


def _histograms(tokens, f_B):
  """Returns curves: name → (xs, ys)."""
  is_present_B = tokens.strength_B > 0
  middles = (_BINS[1:] + _BINS[:-1]) / 2

  def shares(values):
    return middles, np.histogram(values, _BINS)[0] / _TOKENS

  fires_B = f_B > 0
  mean_error = np.mean((f_B - tokens.strength_B)[is_present_B])
  return {
    'absent': shares(f_B[fires_B & ~is_present_B]),
    'present': shares(f_B[fires_B & is_present_B]),
    'true': shares(tokens.strength_B[is_present_B]),
    'false_positives': ([0], [np.mean(fires_B[~is_present_B])]),
    'mean_error': ([0], [mean_error]),
  }


def _ranges():
  """Returns where 95% of z lie, of tokens without and with the feature."""
  spread = float(np.hypot(STRENGTH_SPREAD, NOISE))
  return {
    'absent_range': ((-1.96 * NOISE, 1.96 * NOISE), (0, 0)),
    'present_range': (
      (STRENGTH - 1.96 * spread, STRENGTH + 1.96 * spread),
      (0, 0),
    ),
  }


def _draw_function(ax, curves):
  """Draws an activation function over where z lies."""
  for sort, (_, color, hatch) in _LOOKS.items():
    low, high = curves[f'{sort}_range'][0]
    ax.axvspan(low, high, facecolor=color, alpha=0.25, hatch=hatch, linewidth=0)
  zs, fs = curves['function']
  ax.plot(zs, zs, color='0.3', linestyle='--', linewidth=0.8)
  ax.plot(zs, fs, color='black')
  ax.set(xlim=(zs[0], zs[-1]), ylim=(-0.3, zs[-1]))


def _draw_histograms(ax, curves):
  """Draws the activations of tokens with and without the feature."""
  for sort in ('absent', 'present'):
    _, color, hatch = _LOOKS[sort]
    ax.stairs(
      curves[sort][1],
      _BINS,
      fill=True,
      facecolor=color,
      alpha=0.5,
      hatch=hatch,
    )
  ax.stairs(curves['true'][1], _BINS, color='black', linestyle='--')
  ax.set(xlim=(_BINS[0], _BINS[-1]), ylim=(0, None))


def _add_legend(figure):
  handles = [
    patches.Patch(facecolor=color, alpha=0.5, hatch=hatch, label=label)
    for label, color, hatch in _LOOKS.values()
  ]
  handles.append(
    patches.Patch(
      facecolor='none',
      edgecolor='black',
      linestyle='--',
      label='true strength where present',
    )
  )
  figure.legend(
    handles=handles, loc='outside lower left', ncols=3, frameon=False
  )
