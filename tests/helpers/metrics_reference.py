"""Metrics written from their definitions, in NumPy and float64."""

import math

import numpy as np
import scipy.special

MODELS = ('clean', 'spliced', 'mean_ablated', 'zero_ablated')
#: By the names that SAEBench's results have.
SAEBENCH = {
  'ce_loss_with_sae': 'spliced',
  'ce_loss_without_sae': 'clean',
  'ce_loss_with_ablation': 'zero_everywhere',
}


def metrics(data, W_dec):
  """Returns the metrics of all rows at once, float64.

  Args:
    data: arrays of one row for each position: y, y_hat, f, gradient; logits
      clean, spliced, mean_ablated, zero_ablated, zero_everywhere; target,
      is_text, predicts, has_next, and is_attributed, where importance is
      measured.
    W_dec: the decoder.
  """
  is_text, predicts = data['is_text'], data['predicts']
  y, y_hat, f = (np.float64(data[k])[is_text] for k in ('y', 'y_hat', 'f'))
  error = np.linalg.norm(y - y_hat, axis=1) ** 2
  deviation = np.linalg.norm(y - y.mean(0), axis=1) ** 2
  p = {
    name: scipy.special.softmax(np.float64(data[name])[predicts], axis=1)
    for name in MODELS
  }
  target = data['target'][predicts]
  loss = {
    name: -np.log(p[name][np.arange(len(target)), target]).mean()
    for name in MODELS
  }
  ce = saebench(data)
  fired = (f > 0).mean(0)
  norm = np.linalg.norm(y, axis=1)
  count = math.ceil(len(norm) / 1000)
  rest = norm < (1 - 1e-5) * np.sort(norm)[-count]
  about_mean = ((y - y.mean(0)) ** 2).sum(1)
  delta = loss['spliced'] - loss['clean']
  return {
    'l0': (f > 0).sum(1).mean(),
    'dead_fraction': (fired == 0).mean(),
    'frac_over_1pct': (fired > 0.01).mean(),
    'frac_over_10pct': (fired > 0.1).mean(),
    'fvu': error.mean() / y.var(0).sum(),
    'top_variance_share': about_mean[~rest].sum() / about_mean.sum(),
    'top_positions': (~rest).sum(),
    'fvu_without_top': (
      error[rest].mean() / y[rest].var(0).sum() if rest.any() else math.nan
    ),
    'explained_variance': 1 - error.mean() / y.var(0).sum(),
    'explained_variance_legacy': np.mean(1 - error / deviation),
    'cosine': np.mean(
      [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(y, y_hat)]
    ),
    'relative_reconstruction_bias': (
      np.trace(y_hat @ y_hat.T) / np.trace(y_hat @ y.T)
    ),
    'delta_lm_loss': delta,
    **{f'loss_{name}': value for name, value in loss.items()},
    'loss_recovered': 1 - delta / (loss['mean_ablated'] - loss['clean']),
    'loss_recovered_zero': 1 - delta / (loss['zero_ablated'] - loss['clean']),
    'kl': scipy.special.rel_entr(p['clean'], p['spliced']).sum(1).mean(),
    **ce,
    'ce_loss_score': (
      (ce['ce_loss_with_ablation'] - ce['ce_loss_with_sae'])
      / (ce['ce_loss_with_ablation'] - ce['ce_loss_without_sae'])
    ),
    'importance_uniformity': uniformity(data, np.float64(W_dec)),
    'positions': is_text.sum(),
    'predictions': predicts.sum(),
  }


def saebench(data):
  """SAEBench's losses: at text, whatever the next token is."""
  counts = data['is_text'] & data['has_next']
  target = data['target'][counts][:, None]
  found = {}
  for name, model in SAEBENCH.items():
    logits = np.float64(data[model])[counts]
    log_p = scipy.special.log_softmax(logits, axis=1)
    found[name] = -np.take_along_axis(log_p, target, axis=1).mean()
  return found


def uniformity(data, W_dec):
  """Gemma Scope's Eq. 13: r_L0 = exp(-KL(p | uniform)), mean over rows."""
  found = []
  for i in np.flatnonzero(data['is_attributed']):
    active = np.flatnonzero(data['f'][i])
    if len(active):
      size = abs(data['f'][i, active] * (W_dec[active] @ data['gradient'][i]))
      p = size / size.sum()
      found.append(np.exp(-(p * np.log(p * len(active))).sum()))
  return np.mean(found)
