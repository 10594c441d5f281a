"""Evaluation on held-out text: sparsity, fidelity, effect on the LM's loss.

Follows the paper's section 5 and Gemma Scope's section 4. Special positions
(BOS, EOS, PAD) are never counted, and keep their own activations when a
reconstruction is spliced in: SAEs are not trained on them, and a BOS activation
is so large that its reconstruction alone would decide the loss.

Everything is a sum over positions, in float32 within a batch and in float64
across batches, divided once at the end; ratios are never averaged.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import progress
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import released
from jumprelu_jax.text import packing


@dataclasses.dataclass(frozen=True)
class Baseline:
  """What the metrics of every SAE at a site are measured against.

  Attributes:
    loss_clean: next-token loss of the untouched model, nats.
    loss_mean_ablated: the same with the site's mean in place of activations.
    mean_D: mean activation over text positions.
    variance: mean of ||x - mean||^2.
  """

  loss_clean: float
  loss_mean_ablated: float
  mean_D: np.ndarray
  variance: float


def measure_baseline(
  model: transformer.Transformer,
  tokens_NL: np.ndarray,
  where: sites.Site,
  rows: int,
) -> Baseline:
  """Measures the model on its own; `rows` sequences in a forward pass."""
  clean = _sum_over_batches(
    'evaluate clean', _clean_sums, tokens_NL, rows, model, where
  )
  mean_D = clean['x_D'] / clean['positions']
  ablated = _sum_over_batches(
    'evaluate ablated',
    _ablated_sums,
    tokens_NL,
    rows,
    model,
    where,
    jnp.asarray(mean_D, 'float32'),
  )
  return Baseline(
    loss_clean=clean['loss'] / clean['predictions'],
    loss_mean_ablated=ablated['loss'] / ablated['predictions'],
    mean_D=mean_D,
    variance=ablated['squared_deviation'] / ablated['positions'],
  )


def evaluate(
  sae: released.Released,
  model: transformer.Transformer,
  tokens_NL: np.ndarray,
  where: sites.Site,
  rows: int,
  baseline: Baseline,
  source: sites.Site | None = None,
) -> dict[str, float]:
  """Evaluates a folded SAE or transcoder at the site that it predicts.

  Args:
    sae: raw activations in, raw reconstructions out.
    model: the language model.
    tokens_NL: packed held-out text.
    where: the site that is predicted, and replaced by the prediction.
    rows: sequences in a forward pass.
    baseline: of the same model, text and site.
    source: what a transcoder reads; None for an SAE, which reads `where`.

  Returns:
    l0: mean number of active latents.
    fvu: E||y - y_hat||^2 / E||y - E y||^2 of the predicted site, about the
      mean of the whole set.
    delta_lm_loss: loss_spliced - loss_clean, nats.
    loss_clean, loss_spliced, loss_mean_ablated: nats a token.
    loss_recovered: share of loss_mean_ablated - loss_clean that is recovered.
    dead_fraction: latents that never fired on this text.
    frac_over_1pct, frac_over_10pct: latents that fire on more positions.
    relative_reconstruction_bias: E||y_hat||^2 / E[y_hat . y]; below 1 where
      reconstructions shrink (arXiv:2404.16014, Eq. 10).
  """
  sums = _sum_over_batches(
    'evaluate SAE', _spliced_sums, tokens_NL, rows, model, where, sae, source
  )
  positions = sums['positions']
  loss_spliced = sums['loss'] / sums['predictions']
  ablation_harm = baseline.loss_mean_ablated - baseline.loss_clean
  frequency_M = sums['fired_M'] / positions
  return {
    'l0': float(np.sum(sums['fired_M']) / positions),
    'fvu': float(sums['squared_error'] / positions / baseline.variance),
    'delta_lm_loss': float(loss_spliced - baseline.loss_clean),
    'loss_clean': float(baseline.loss_clean),
    'loss_spliced': float(loss_spliced),
    'loss_mean_ablated': float(baseline.loss_mean_ablated),
    'loss_recovered': float(
      (baseline.loss_mean_ablated - loss_spliced) / ablation_harm
    ),
    'dead_fraction': float(np.mean(frequency_M == 0)),
    'frac_over_1pct': float(np.mean(frequency_M > 0.01)),
    'frac_over_10pct': float(np.mean(frequency_M > 0.1)),
    'relative_reconstruction_bias': float(
      sums['y_hat_squared'] / sums['y_hat_dot_y']
    ),
  }


def spliced_logits(
  model: transformer.Transformer,
  tokens_BL: jax.Array,
  where: sites.Site,
  fn: Callable[[jax.Array], jax.Array],
  source: sites.Site | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Runs the model with fn(x) in place of y at text positions of a site.

  Args:
    model: the language model.
    tokens_BL: token ids.
    where: the site of y.
    fn: maps rows x_BD to rows of y's shape.
    source: the site of x, before that of y; None has x = y.

  Returns:
    logits [B, L, V], and at the site y [B * L, D] and fn(x) [B * L, D].
  """
  is_text_BL = packing.is_text(tokens_BL, model.architecture.special_ids)
  inputs, seen = [], []

  def keep(x_BLD):
    inputs.append(_as_rows(x_BLD))
    return x_BLD

  def replace(y_BLD):
    y_ND = _as_rows(y_BLD)
    y_hat_ND = fn(inputs[0] if inputs else y_ND)
    seen.extend([y_ND, y_hat_ND])
    return y_hat_ND.reshape(y_BLD.shape).astype(y_BLD.dtype)

  hooks = sites.splice(where, replace, is_text_BL)
  if source is not None:
    hooks = {source: keep} | hooks
  logits_BLV = transformer.logits(model, tokens_BL, hooks)
  return logits_BLV, *seen


@functools.partial(jax.jit, static_argnames='where')
def _clean_sums(tokens_BL, model, where):
  """Sums for the clean loss and the mean activation."""
  logits_BLV, x_ND, _ = spliced_logits(model, tokens_BL, where, lambda x: x)
  is_text_N1 = _is_text_N1(model, tokens_BL)
  x_D = jnp.sum(x_ND * is_text_N1, axis=0)
  return _loss_sums(model, logits_BLV, tokens_BL) | {'x_D': x_D}


@functools.partial(jax.jit, static_argnames='where')
def _ablated_sums(tokens_BL, model, where, mean_D):
  """Sums for the loss with the mean spliced in, and for the variance."""
  logits_BLV, x_ND, mean_ND = spliced_logits(
    model, tokens_BL, where, lambda x: jnp.broadcast_to(mean_D[None], x.shape)
  )
  deviation = jnp.sum((x_ND - mean_ND) ** 2 * _is_text_N1(model, tokens_BL))
  sums = _loss_sums(model, logits_BLV, tokens_BL)
  return sums | {'squared_deviation': deviation}


@functools.partial(jax.jit, static_argnames=('where', 'source'))
def _spliced_sums(tokens_BL, model, where, sae, source):
  """Sums for all that is measured with an SAE spliced in."""
  latents = []

  def reconstruct(x_ND):
    latents.append(sae.encode(x_ND))
    return sae.predict(latents[0], x_ND)

  logits_BLV, y_ND, y_hat_ND = spliced_logits(
    model, tokens_BL, where, reconstruct, source
  )
  is_text_N1 = _is_text_N1(model, tokens_BL)
  fired_NM = (latents[0] > 0) * is_text_N1
  return _loss_sums(model, logits_BLV, tokens_BL) | {
    'fired_M': jnp.sum(fired_NM, axis=0),
    'squared_error': jnp.sum((y_ND - y_hat_ND) ** 2 * is_text_N1),
    'y_hat_squared': jnp.sum(y_hat_ND**2 * is_text_N1),
    'y_hat_dot_y': jnp.sum(y_hat_ND * y_ND * is_text_N1),
  }


def _as_rows(x_BLD):
  """Returns rows [B * L, D], float32."""
  return x_BLD.reshape(-1, x_BLD.shape[-1]).astype('float32')


def _loss_sums(model, logits_BLV, tokens_BL):
  """Sums of loss, predictions and text positions."""
  special = model.architecture.special_ids
  loss_BL, counts_BL = lm_loss.next_token_loss(logits_BLV, tokens_BL, special)
  return {
    'loss': jnp.sum(loss_BL * counts_BL),
    'predictions': jnp.sum(counts_BL),
    'positions': jnp.sum(_is_text_N1(model, tokens_BL)),
  }


def _is_text_N1(model, tokens_BL):
  """1 where a position counts, as a column of floats."""
  is_text_BL = packing.is_text(tokens_BL, model.architecture.special_ids)
  return is_text_BL.reshape(-1, 1).astype('float32')


def _sum_over_batches(label, sums_fn, tokens_NL, rows, model, where, *args):
  """Adds up a function's sums over all sequences, in float64."""
  total = {}
  with progress.track(label, tokens_NL.size, 'tokens') as bar:
    for start in range(0, len(tokens_NL), rows):
      tokens_BL = tokens_NL[start : start + rows]
      padded_BL = packing.pad_rows(tokens_BL, rows, model.architecture.pad_id)
      sums = jax.device_get(
        sums_fn(jnp.asarray(padded_BL), model, where, *args)
      )
      for name, value in sums.items():
        total[name] = total.get(name, 0) + np.asarray(value, np.float64)
      bar.advance(tokens_BL.size)
  return total
