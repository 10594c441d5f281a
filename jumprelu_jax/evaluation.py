"""Evaluation on held-out text: runs the model, and feeds `metrics`.

Follows the paper's section 5 and Gemma Scope's section 4. Special positions
(BOS, EOS, PAD) are never counted. They keep their own activations when a
reconstruction is spliced in, unless `Setting.splice_special`: SAEs are not
trained on them, and a BOS activation is so large, and so many heads attend to
it, that its reconstruction alone would decide the loss.

Many SAEs are evaluated in one pass over the text. Of each batch the model runs
once, untouched, and for each SAE only from its site on; the clean predictions
that KL needs are made again for each, from the residual stream at the end,
which is smaller than they are by vocabulary over d_model. So memory does not
depend on the text's length, and on the number of SAEs only by their weights.

Variances are about the mean of the whole text, which a first pass up to the
site finds. It is needed anyway, for the mean ablation, and once a site, not
once an SAE.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools

import jax
from jax import numpy as jnp
import numpy as np

from jumprelu_jax import metrics
from jumprelu_jax import preemption
from jumprelu_jax import progress
from jumprelu_jax import sharding
from jumprelu_jax import splicing
from jumprelu_jax import top
from jumprelu_jax.lm import outliers
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.sae import released
from jumprelu_jax.text import packing

# Predictions that a device makes at a time: enough rows for a matrix product to
# be efficient, and no more. Measured best on a CPU with 4,096 tokens.
_PREDICTIONS = 256


@dataclasses.dataclass(frozen=True)
class Setting:
  """What SAEs are evaluated on.

  Attributes:
    model: the language model.
    tokens_NL: packed held-out text.
    where: the site that is predicted, and replaced by the prediction.
    rows: sequences in a forward pass.
    source: what a transcoder reads, before `where`; None for SAEs, which read
      `where`.
    splice_special: replace special positions too.
    importance_sequences: `importance_uniformity` is measured on as many.
    mesh: what the model lies on; sequences are spread over its 'data' axis.
      None is one device.
    limits: of norms; a position beyond them is treated as a special one.
  """

  model: transformer.Transformer
  tokens_NL: np.ndarray
  where: sites.Site
  rows: int
  source: sites.Site | None = None
  splice_special: bool = False
  importance_sequences: int = 0
  mesh: jax.sharding.Mesh | None = None
  limits: outliers.Limits = ()

  def place(self, sae: released.Released) -> released.Released:
    """Returns the SAE on the mesh."""
    if self.mesh is None:
      return sae
    return jax.device_put(sae, sharding.of_tree(self.mesh, sae))

  def batches(self, label: str) -> Iterator[_Batch]:
    """Yields the text in batches of `rows`, the last one padded.

    Raises:
      errors.InputError: the text has a token that the model has not.
      preemption.PreemptedError: the process was asked to end.
    """
    architecture = self.model.architecture
    layout = None if self.mesh is None else sharding.of_batch(self.mesh)
    with progress.track(label, self.tokens_NL.size, 'tokens') as bar:
      for start in range(0, len(self.tokens_NL), self.rows):
        tokens_BL = self.tokens_NL[start : start + self.rows]
        architecture.check_ids(tokens_BL)
        padded_BL = packing.pad_rows(tokens_BL, self.rows, architecture.pad_id)
        special = architecture.special_ids
        placed_BL = jax.device_put(padded_BL, layout)
        is_text_BL = packing.is_text(padded_BL, special)
        if self.limits:
          within_BL = outliers.are_within(self.model, placed_BL, self.limits)
          is_text_BL &= np.asarray(within_BL)
        yield _Batch(
          first=start,
          is_text_BL=is_text_BL,
          predicts_BL=packing.predicts_text(padded_BL, special)
          & is_text_BL[:, :-1],
          tokens_BL=placed_BL,
          counts_BL=jax.device_put(is_text_BL, layout),
        )
        bar.advance(tokens_BL.size)
        preemption.check(
          f'{label}: stopped on request; what is evaluated is kept, and the '
          'same command goes on with the rest.'
        )

  @property
  def splice(self) -> splicing.Splice:
    """Where activations are read and replaced."""
    devices = 1 if self.mesh is None else self.mesh.shape['data']
    return splicing.make(
      self.model.architecture,
      self.where,
      self.source,
      at_special=self.splice_special,
      positions=max(1, _PREDICTIONS * devices // self.rows),
    )


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Some sequences; the masks are on the host.

  Attributes:
    first: index of the first.
    is_text_BL: where a position is text, within the limits.
    predicts_BL: [B, L - 1], where a prediction counts.
    tokens_BL: on the device.
    counts_BL: is_text_BL, on the device.
  """

  first: int
  is_text_BL: np.ndarray
  predicts_BL: np.ndarray
  tokens_BL: jax.Array
  counts_BL: jax.Array

  def run_clean(self, setting: Setting) -> splicing.Clean:
    """Runs the untouched model on it."""
    return splicing.run_clean(
      setting.model, self.tokens_BL, setting.splice, self.counts_BL
    )


def measure_baseline(setting: Setting) -> metrics.Baseline:
  """Measures the model on its own, in two passes over the text."""
  activations = measure_activations(setting)
  ablations = measure_ablations(setting, metrics.mean_of(activations))
  return metrics.baseline(activations, ablations)


def measure_activations(setting: Setting) -> metrics.Sums:
  """Returns the sums for the mean activation; runs the model to the site."""
  splice, sums = setting.splice, metrics.merge()
  for batch in setting.batches('evaluate mean'):
    y_D, norm_BL = jax.device_get(
      _sum_of_text(setting.model, batch.tokens_BL, batch.counts_BL, splice)
    )
    found = {
      'y_D': y_D,
      'positions': batch.is_text_BL.sum(),
      'norms': top.Largest(norm_BL[batch.is_text_BL]),
    }
    sums = metrics.merge(sums, found)
  return sums


def measure_ablations(setting: Setting, mean_D: np.ndarray) -> metrics.Sums:
  """Returns the sums for the losses without any SAE."""
  splice, sums = setting.splice, metrics.merge()
  mean_D = jnp.asarray(mean_D, 'float32')
  for batch in setting.batches('evaluate clean'):
    clean = batch.run_clean(setting)
    losses = jax.device_get(_ablated(setting.model, clean, mean_D, splice))
    columns = {
      'ce_loss_without_sae': losses['loss_clean'],
      'ce_loss_with_ablation': losses.pop('ce_loss_with_ablation'),
    }
    sums = metrics.merge(
      sums, _of_predictions(losses, batch), _as_saebench(columns, batch)
    )
  return sums


def evaluate(
  sae: released.Released, setting: Setting, baseline: metrics.Baseline
) -> dict[str, float]:
  """Returns the metrics of one SAE; `measure` and `metrics.finish` in one."""
  return metrics.finish(*measure([sae], setting, baseline), baseline)


def measure(
  saes: Sequence[released.Released],
  setting: Setting,
  baseline: metrics.Baseline,
) -> list[metrics.Sums]:
  """Measures folded SAEs or transcoders at one site, in one pass.

  Args:
    saes: raw activations in, raw reconstructions out; all are on the device at
      once.
    setting: the model, the text and the site.
    baseline: of the same setting.

  Returns:
    The sums of each, for `metrics.finish` and `metrics.latents`. An SAE's do
    not depend on the others.
  """
  splice = setting.splice
  pivot_D = jnp.asarray(baseline.mean_D, 'float32')
  top_norm = np.float32(baseline.top_norm)
  saes = [setting.place(sae) for sae in saes]
  sums = [metrics.merge() for _ in saes]
  for batch in setting.batches('evaluate SAEs'):
    clean = batch.run_clean(setting)
    found = [
      _spliced(sae, setting.model, clean, pivot_D, top_norm, splice)
      for sae in saes
    ]
    attributed = _attribute(saes, setting, batch, clean)
    found = jax.device_get(found)
    sums = [
      metrics.merge(total, _sums_of(one, batch), importance)
      for total, one, importance in zip(sums, found, attributed, strict=True)
    ]
  return sums


def _sums_of(found, batch):
  """Adds up what `_spliced` found of a batch."""
  is_text_N = batch.is_text_BL.ravel()
  active_N = found['active_N'][is_text_N]
  return {
    'positions': is_text_N.sum(),
    'positions_by_l0': metrics.histogram(active_N, len(found['fired_M'])),
    'fired_M': found['fired_M'],
    'deviation_D': found['deviation_D'],
    **metrics.add_up(found['of_rows'], is_text_N),
    **metrics.add_up_rest(found['of_rows'], found['is_rest_N']),
    'rest_deviation_D': found['rest_deviation_D'],
    **_of_predictions(found['of_predictions'], batch),
    **_as_saebench(
      {'ce_loss_with_sae': found['of_predictions']['loss_spliced']}, batch
    ),
  }


def _of_predictions(columns_BL, batch):
  """Adds up columns [B, L - 1] over the predictions that count."""
  counts_BL = batch.predicts_BL
  return metrics.add_up(columns_BL, counts_BL) | {
    'predictions': counts_BL.sum()
  }


def _as_saebench(columns_BL, batch):
  """The same over the predictions that SAEBench counts."""
  counts_BL = batch.is_text_BL[:, :-1]
  return metrics.add_up(columns_BL, counts_BL) | {
    'ce_predictions': counts_BL.sum()
  }


def _attribute(saes, setting, batch, clean):
  """Returns each SAE's sums of importance over a batch; none where unwanted."""
  wanted = setting.importance_sequences - batch.first
  if wanted <= 0:
    return [{} for _ in saes]
  splice = setting.splice
  gradient_ND = splicing.gradient(
    metrics.centred_logit, setting.model, clean, splice
  )
  # The last position has no next token, and so no logit of its own.
  counts_BL = np.pad(batch.predicts_BL, ((0, 0), (0, 1)))
  counts_BL[wanted:] = False
  columns = [_importance(sae, clean.x_ND, gradient_ND) for sae in saes]
  return [
    metrics.add_up(column, counts_BL.ravel())
    for column in jax.device_get(columns)
  ]


@functools.partial(jax.jit, static_argnames='splice')
def _sum_of_text(model, tokens_BL, is_text_BL, splice):
  """Returns of what is predicted the sum over text, and all norms."""
  (y_BLD,) = transformer.tap(model, tokens_BL, (splice.where,))
  y_BLD = y_BLD.astype('float32')
  norm_BL = jnp.linalg.norm(y_BLD, axis=-1)
  y_BLD = jnp.where(is_text_BL[..., None], y_BLD, 0)
  return jnp.sum(y_BLD, axis=(0, 1)), norm_BL


@functools.partial(jax.jit, static_argnames='splice')
def _ablated(model, clean, mean_D, splice):
  """Returns losses of the model untouched, and with the mean and zeros in."""
  names = (
    *('loss_clean', 'loss_mean_ablated', 'loss_zero_ablated'),
    'ce_loss_with_ablation',
  )
  zeros_D, everywhere = jnp.zeros_like(mean_D), splice.everywhere()
  ends_BLD = [clean.end_BLD] + [
    splicing.run_with(
      model, clean, jnp.broadcast_to(y_D[None], clean.y_ND.shape), where
    )
    for y_D, where in (
      (mean_D, splice),
      (zeros_D, splice),
      (zeros_D, everywhere),
    )
  ]

  def losses(*logits_and_target):
    *logits_BV, target_B = logits_and_target
    found = [metrics.cross_entropy(one, target_B) for one in logits_BV]
    return dict(zip(names, found, strict=True))

  return splicing.at_predictions(losses, model, clean, splice, *ends_BLD)


@functools.partial(jax.jit, static_argnames='splice')
def _spliced(sae, model, clean, pivot_D, top_norm, splice):
  """Returns all that is measured with an SAE spliced in, but importance."""
  is_text_N = clean.is_text_BL.reshape(-1)
  f_NM = sae.encode(clean.x_ND)
  y_hat_ND = sae.predict(f_NM, clean.x_ND)
  ends_BLD = [clean.end_BLD, splicing.run_with(model, clean, y_hat_ND, splice)]
  return {
    'active_N': jnp.sum(f_NM > 0, axis=-1, dtype='int32'),
    'of_rows': metrics.of_rows(clean.y_ND, y_hat_ND, pivot_D),
    'of_predictions': splicing.at_predictions(
      metrics.of_predictions, model, clean, splice, *ends_BLD
    ),
    **metrics.totals(clean.y_ND, f_NM, pivot_D, is_text_N),
    **top.rest(clean.y_ND, pivot_D, is_text_N, top_norm),
  }


@jax.jit
def _importance(sae, x_ND, gradient_ND):
  return metrics.of_importance(sae.encode(x_ND), gradient_ND, sae.W_dec)
