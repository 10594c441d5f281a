"""Metrics of SAEs, each defined once, as sums over positions that add up.

On the device every position gets its own numbers, float32: `of_rows`,
`of_predictions`, `of_importance`. On the host `add_up` adds those of the
positions that count, in float64; `merge` adds sums of batches, shards and
hosts, of any size and in any order; `finish` divides once, at the end. Ratios
are never averaged.

Three kinds of positions count:

  text             the token is not special (BOS, EOS, PAD)
  predictions      the token and the next are text
  ce_predictions   the token is text, the next may be special: SAEBench's

y is what is predicted: the SAE's own input x, or a transcoder's target.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax import ops
from jumprelu_jax import shapes
from jumprelu_jax import top

#: Name → sum over positions, float64 or int64: a number, or an array of one for
#: each latent (_M), dimension (_D) or value of L0.
Sums = dict[str, 'float | int | np.ndarray | top.Largest']


@dataclasses.dataclass(frozen=True)
class Baseline:
  """What SAEs at a site are measured against: the model without any.

  Attributes:
    mean_D: mean activation over text positions, float64.
    loss_clean: next-token loss of the untouched model, nats.
    loss_mean_ablated: the same with the mean in place of activations.
    loss_zero_ablated: the same with zeros.
    ce_loss_without_sae: of the untouched model over `ce_predictions`.
    ce_loss_with_ablation: the same with zeros at special positions too.
    top_norm: from this norm on a position belongs to the top.
  """

  mean_D: np.ndarray
  loss_clean: float
  loss_mean_ablated: float
  loss_zero_ablated: float
  ce_loss_without_sae: float
  ce_loss_with_ablation: float
  top_norm: float


def of_rows(
  y_ND: jax.Array, y_hat_ND: jax.Array, pivot_D: jax.Array
) -> dict[str, jax.Array]:
  """Returns what each reconstruction adds to the sums, [N] each.

    squared_error      |y - y_hat|^2
    squared_deviation  |y - pivot|^2
    unexplained        squared_error / squared_deviation
    y_hat_squared      |y_hat|^2
    y_hat_dot_y        y_hat . y
    cosine             y_hat . y / (|y_hat| |y|); 0 where either is 0

  Args:
    y_ND: activations, float32.
    y_hat_ND: their reconstructions, float32.
    pivot_D: near the mean of all of y, float32. Variances are exact about the
      mean whatever it is; `unexplained` is about the pivot.
  """
  shapes.check(y_ND=y_ND, y_hat_ND=y_hat_ND, pivot_D=pivot_D)
  squared_error_N = jnp.sum((y_ND - y_hat_ND) ** 2, axis=-1)
  squared_deviation_N = jnp.sum((y_ND - pivot_D[None]) ** 2, axis=-1)
  y_hat_squared_N = jnp.sum(y_hat_ND**2, axis=-1)
  dot_N = jnp.sum(y_hat_ND * y_ND, axis=-1)
  norms_N = jnp.sqrt(y_hat_squared_N) * jnp.linalg.norm(y_ND, axis=-1)
  return {
    'squared_error': squared_error_N,
    'squared_deviation': squared_deviation_N,
    'unexplained': squared_error_N / squared_deviation_N,
    'y_hat_squared': y_hat_squared_N,
    'y_hat_dot_y': dot_N,
    'cosine': jnp.where(norms_N > 0, dot_N / jnp.maximum(norms_N, 1e-30), 0),
  }


def totals(
  y_ND: jax.Array, f_NM: jax.Array, pivot_D: jax.Array, is_text_N: jax.Array
) -> dict[str, jax.Array]:
  """Returns the sums that are too wide to be fetched position by position.

    deviation_D  sum of y - pivot over text, float32: small, for the pivot is
                 near the mean, and it enters the variance squared
    fired_M      text positions on which each latent fires, int32: exact

  Arguments as `of_rows`; f_NM are the latents' activations.
  """
  deviation_ND = jnp.where(is_text_N[:, None], y_ND - pivot_D[None], 0)
  fired_NM = (f_NM > 0) & is_text_N[:, None]
  return {
    'deviation_D': jnp.sum(deviation_ND, axis=0),
    'fired_M': jnp.sum(fired_NM, axis=0, dtype='int32'),
  }


def of_predictions(
  clean_NV: jax.Array, spliced_NV: jax.Array, target_N: jax.Array
) -> dict[str, jax.Array]:
  """Returns what each next-token prediction adds to the sums, [N] each, nats.

    loss_spliced  -log q(target)
    kl            sum_v p(v) (log p(v) - log q(v))

  Args:
    clean_NV: logits of the untouched model, whose softmax is p; float32.
    spliced_NV: logits with the reconstruction in its place, for q.
    target_N: the next tokens.
  """
  shapes.check(clean_NV=clean_NV, spliced_NV=spliced_NV, target_N=target_N)
  clean_NV -= jnp.max(clean_NV, axis=-1, keepdims=True)
  weight_NV = jnp.exp(clean_NV)
  total_N = jnp.sum(weight_NV, axis=-1)
  log_p_NV = clean_NV - jnp.log(total_N)[:, None]
  log_q_NV = jax.nn.log_softmax(spliced_NV)
  kl_N = jnp.sum(weight_NV * (log_p_NV - log_q_NV), axis=-1) / total_N
  return {'loss_spliced': -_at(log_q_NV, target_N), 'kl': kl_N}


def cross_entropy(logits_NV: jax.Array, target_N: jax.Array) -> jax.Array:
  """Returns -log softmax(logits) at the targets, [N], nats."""
  return -_at(jax.nn.log_softmax(logits_NV), target_N)


def centred_logit(logits_NV: jax.Array, target_N: jax.Array) -> jax.Array:
  """Returns the targets' logits less the mean over the vocabulary, [N]."""
  return _at(logits_NV, target_N) - jnp.mean(logits_NV, axis=-1)


def of_importance(
  f_NM: jax.Array, gradient_ND: jax.Array, W_dec_MD: jax.Array
) -> dict[str, jax.Array]:
  """Returns how evenly active latents share the effect on predictions, [N].

  Lieberum et al. 2024 (arXiv:2408.05147), Eqs. 12 to 14:
    a = f * (W_dec gradient),  p = |a| / |a|_1,  r_L0 = exp(entropy(p)) / |a|_0
  between 1 / |a|_0 (one latent has all of the effect) and 1 (all the same).

    importance_uniformity  r_L0; 0 where no latent has an effect
    attributed             1 where one has, and r_L0 is defined

  Args:
    f_NM: the latents' activations.
    gradient_ND: d centred_logit / dy at the activations themselves.
    W_dec_MD: the decoder.
  """
  shapes.check(f_NM=f_NM, gradient_ND=gradient_ND, W_dec_MD=W_dec_MD)
  size_NM = jnp.abs(f_NM * ops.matmul(gradient_ND, W_dec_MD.T, 'float32'))
  total_N = jnp.sum(size_NM, axis=-1)
  count_N = jnp.sum(size_NM > 0, axis=-1)
  is_defined_N = total_N > 0
  p_NM = size_NM / jnp.where(is_defined_N, total_N, 1)[:, None]
  entropy_N = -jnp.sum(jax.scipy.special.xlogy(p_NM, p_NM), axis=-1)
  uniformity_N = jnp.exp(entropy_N) / jnp.maximum(count_N, 1)
  return {
    'importance_uniformity': jnp.where(is_defined_N, uniformity_N, 0),
    'attributed': is_defined_N.astype('float32'),
  }


def add_up(columns: Mapping[str, np.ndarray], counts_N: np.ndarray) -> Sums:
  """Returns float64 sums of columns [N] over the positions that count."""
  return {
    name: float(np.sum(np.asarray(column_N)[counts_N], dtype=np.float64))
    for name, column_N in columns.items()
  }


def add_up_rest(
  columns: Mapping[str, np.ndarray], is_rest_N: np.ndarray
) -> Sums:
  """Returns the sums of `of_rows` over positions that are not of the top."""
  names = ('squared_error', 'squared_deviation')
  found = add_up({name: columns[name] for name in names}, is_rest_N)
  return {f'rest_{name}': value for name, value in found.items()} | {
    'rest_positions': is_rest_N.sum()
  }


def histogram(active_N: np.ndarray, num_latents: int) -> np.ndarray:
  """Returns how many positions have 0, 1, … num_latents active latents."""
  return np.bincount(active_N, minlength=num_latents + 1)


def merge(*parts: Sums) -> Sums:
  """Returns the sums of all positions of some parts; () has none."""
  merged = {}
  for part in parts:
    for name, value in part.items():
      value = value if isinstance(value, top.Largest) else _widened(value)
      merged[name] = merged[name] + value if name in merged else value
  return merged


def mean_of(activations: Sums) -> np.ndarray:
  """Returns the mean activation of sums of y (y_D) over positions, float64."""
  return activations['y_D'] / max(activations['positions'], 1)


def baseline(activations: Sums, ablations: Sums) -> Baseline:
  """Returns the baseline of the sums for the mean and for the losses."""
  losses = {
    name: ratio(ablations[name], ablations['predictions'])
    for name in ('loss_clean', 'loss_mean_ablated', 'loss_zero_ablated')
  }
  losses |= {
    name: ratio(ablations[name], ablations['ce_predictions'])
    for name in ('ce_loss_without_sae', 'ce_loss_with_ablation')
  }
  top_norm = top.least_norm(activations['norms'], activations['positions'])
  return Baseline(mean_of(activations), **losses, top_norm=top_norm)


def finish(sums: Sums, baseline: Baseline) -> dict[str, float]:
  """Returns the metrics; NaN where one is not defined, being 0 / 0.

  E is the mean over text positions, but for losses and kl, whose mean is over
  predictions.

  Returns:
    l0: mean number of active latents.
    fvu: E|y - y_hat|^2 / E|y - E y|^2, about the mean of the whole set.
    top_variance_share: share of E|y - E y|^2 that the top has, the 0.1% of the
      positions with the largest norms, and all of equal norm.
    top_positions: how many these are.
    fvu_without_top: fvu of all other positions, about their own mean.
    explained_variance: 1 - fvu.
    explained_variance_legacy: 1 - E[|y - y_hat|^2 / |y - E y|^2], SAEBench's
      and SAELens' metric of that name, where each position's ratio weighs the
      same. Differs: they centre each batch about its own mean, so that theirs
      depends on the batch; this is theirs with the set as one batch.
    cosine: E[cos(y, y_hat)].
    relative_reconstruction_bias: gamma = E|y_hat|^2 / E[y_hat . y]; below 1
      where reconstructions shrink (arXiv:2404.16014, Eq. 10).
    delta_lm_loss: loss_spliced - loss_clean, nats.
    loss_clean, loss_spliced, loss_mean_ablated, loss_zero_ablated: nats.
    loss_recovered: share of loss_mean_ablated - loss_clean that is recovered.
    loss_recovered_zero: the same of loss_zero_ablated, where special positions
      keep their activations.
    ce_loss_score, ce_loss_with_sae, ce_loss_without_sae,
      ce_loss_with_ablation: SAEBench's metrics of these names: over
      `ce_predictions`, and with zeros at special positions too in the ablation.
    kl: of the spliced model's predictions from the clean model's, nats.
    dead_fraction: latents that never fired on this text.
    frac_over_1pct, frac_over_10pct: latents that fire on more positions.
    importance_uniformity: mean r_L0 (`of_importance`); NaN unless measured.
    positions, predictions: how many there were.

  Raises:
    errors.InputError: there was no prediction to measure.
    errors.NotFiniteError: a sum is not finite, so that metrics are not.
  """
  if not sums['predictions']:
    raise errors.InputError(
      'the held-out text has no two tokens of text in a row, so that nothing '
      'can be measured; give another text, or longer sequences.'
    )
  found = {
    **_sparsity(sums),
    **_fidelity(sums),
    **_effect(sums, baseline),
    'importance_uniformity': ratio(
      sums.get('importance_uniformity', 0), sums.get('attributed', 0)
    ),
    'positions': int(sums['positions']),
    'predictions': int(sums['predictions']),
  }
  _check_finite(found, sums, baseline)
  return found


def latents(sums: Sums) -> dict[str, np.ndarray]:
  """Returns what is known of single latents, for figures.

  Returns:
    fired_M: text positions on which each latent fires.
    positions: text positions.
    frequency_M: their ratio.
    positions_by_l0: text positions with 0, 1, … active latents, as far as
      there are any.
  """
  by_l0 = sums['positions_by_l0']
  return {
    'fired_M': sums['fired_M'],
    'positions': np.int64(sums['positions']),
    'frequency_M': _frequency(sums),
    'positions_by_l0': np.trim_zeros(by_l0, 'b'),
  }


def ratio(a: float, b: float) -> float:
  """Returns a / b; NaN where b is 0."""
  return float(a) / float(b) if b else math.nan


def _check_finite(found, sums, baseline):
  """Raises NotFiniteError if metrics are what no finite sums would give."""
  # A position that is the mean itself makes `unexplained` x / 0, undefined.
  parts = {
    name: value
    for name, value in sums.items()
    if name != 'unexplained' and not isinstance(value, top.Largest)
  }
  parts |= dataclasses.asdict(baseline)
  if all(np.all(np.isfinite(value)) for value in parts.values()):
    return
  wrong = [name for name, value in found.items() if not math.isfinite(value)]
  if 'attributed' not in sums:
    wrong.remove('importance_uniformity')  # which was not asked for
  raise errors.NotFiniteError(
    f'{", ".join(wrong)}: not finite on the held-out text; look for NaN and '
    'very large weights in the SAE and in the model, or evaluate in float32.'
  )


def _sparsity(sums):
  frequency_M = _frequency(sums)
  return {
    'l0': ratio(np.sum(sums['fired_M']), sums['positions']),
    'dead_fraction': float(np.mean(frequency_M == 0)),
    'frac_over_1pct': float(np.mean(frequency_M > 0.01)),
    'frac_over_10pct': float(np.mean(frequency_M > 0.1)),
  }


def _fidelity(sums):
  n = sums['positions']
  # Var y = E|y - pivot|^2 - |E(y - pivot)|^2 for any pivot.
  offset = ratio(np.sum(sums['deviation_D'] ** 2), n * n)
  variance = ratio(sums['squared_deviation'], n) - offset
  fvu = ratio(ratio(sums['squared_error'], n), variance)
  unexplained = ratio(sums['unexplained'], n)
  return {
    'fvu': fvu,
    **_without_top(sums, variance),
    'explained_variance': 1 - fvu,
    'explained_variance_legacy': (
      1 - unexplained if math.isfinite(unexplained) else math.nan
    ),
    'cosine': ratio(sums['cosine'], n),
    'relative_reconstruction_bias': ratio(
      sums['y_hat_squared'], sums['y_hat_dot_y']
    ),
  }


def _without_top(sums, variance):
  n, rest = sums['positions'], sums['rest_positions']
  about_all, about_own = top.variations(sums)
  return {
    'top_variance_share': 1 - ratio(about_all, n * variance),
    'top_positions': int(n - rest),
    'fvu_without_top': ratio(sums['rest_squared_error'], about_own),
  }


def _effect(sums, baseline):
  clean = baseline.loss_clean
  spliced = ratio(sums['loss_spliced'], sums['predictions'])
  mean, zero = baseline.loss_mean_ablated, baseline.loss_zero_ablated
  return {
    'delta_lm_loss': spliced - clean,
    'loss_clean': clean,
    'loss_spliced': spliced,
    'loss_mean_ablated': mean,
    'loss_zero_ablated': zero,
    'loss_recovered': ratio(mean - spliced, mean - clean),
    'loss_recovered_zero': ratio(zero - spliced, zero - clean),
    'kl': ratio(sums['kl'], sums['predictions']),
    **_as_saebench(sums, baseline),
  }


def _as_saebench(sums, baseline):
  clean, zero = baseline.ce_loss_without_sae, baseline.ce_loss_with_ablation
  spliced = ratio(sums['ce_loss_with_sae'], sums['ce_predictions'])
  return {
    'ce_loss_score': ratio(zero - spliced, zero - clean),
    'ce_loss_with_sae': spliced,
    'ce_loss_without_sae': clean,
    'ce_loss_with_ablation': zero,
  }


def _frequency(sums):
  return sums['fired_M'] / max(sums['positions'], 1)


def _at(values_NV, target_N):
  """Returns each row's value at its target, [N]."""
  return jnp.take_along_axis(values_NV, target_N[:, None], axis=-1)[:, 0]


def _widened(value):
  """Returns a number or array in 64 bits."""
  value = np.asarray(value)
  wide = np.int64 if np.issubdtype(value.dtype, np.integer) else np.float64
  return value.astype(wide)
