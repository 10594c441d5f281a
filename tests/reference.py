"""Float64 NumPy oracles, written from the paper's formulas."""

import numpy as np


def rectangle(u):
  """K(u) = 1 for -1/2 < u < 1/2 (arXiv:2407.14435, section 3)."""
  return np.where(np.abs(u) < 0.5, 1.0, 0.0)


def forward(x, W_enc, b_enc, W_dec, b_dec, threshold):
  """Eqs. 1-4 and 8 with a pre-encoder bias: pre-activations, f, x_hat."""
  pre = (x - b_dec) @ W_enc + b_enc
  f = pre * (pre > threshold)
  return pre, f, f @ W_dec + b_dec


def loss(x, x_hat, f, sparsity_coeff):
  """Eq. 9, mean over rows."""
  squared_error = ((x - x_hat) ** 2).sum(-1)
  return (squared_error + sparsity_coeff * (f != 0).sum(-1)).mean()


def gradients(x, params, sparsity_coeff, bandwidth):
  """Gradients of Eq. 9 with the pseudo-derivatives of Eqs. 11 and 12."""
  W_enc, b_enc, W_dec, b_dec, log_threshold = params
  threshold = np.exp(log_threshold)
  rows = len(x)
  pre, f, x_hat = forward(x, W_enc, b_enc, W_dec, b_dec, threshold)
  d_x_hat = 2 * (x_hat - x) / rows
  d_f = d_x_hat @ W_dec.T
  d_pre = d_f * (pre > threshold)
  window = rectangle((np.maximum(pre, 0) - threshold) / bandwidth) / bandwidth
  d_threshold = -(threshold * window * d_f).sum(
    0
  ) - sparsity_coeff / rows * window.sum(0)
  return {
    'W_enc': (x - b_dec).T @ d_pre,
    'b_enc': d_pre.sum(0),
    'W_dec': f.T @ d_x_hat,
    'b_dec': d_x_hat.sum(0) - (d_pre @ W_enc.T).sum(0),
    'log_threshold': threshold * d_threshold,
  }


def penalty_cotangents(name, pre, f, threshold, W_dec, c):
  """A penalty's value and its derivatives, each by hand from its formula.

  Args:
    name: of the penalty.
    pre, f: pre-activations and activations.
    threshold, W_dec: parameters.
    c: numbers of the penalty.

  Returns:
    value, and a dict of derivatives by f, by the step, by pre directly, by the
    threshold directly and by the norms of decoder rows.
  """
  rows = len(pre)
  active = (pre > threshold).astype(float)
  norm = np.linalg.norm(W_dec, axis=1)
  coeff, l0 = c['sparsity_coeff'], active.sum(1)
  zero = {
    'f': np.zeros_like(f), 'active': np.zeros_like(f), 'pre': np.zeros_like(f),
    'threshold': np.zeros_like(threshold), 'norm': np.zeros_like(norm),
  }  # fmt: skip
  if name == 'l0':
    return coeff * l0.mean(), zero | {'active': coeff / rows + 0 * f}
  if name == 'target_l0':
    ratio = l0 / c['target_l0'] - 1
    d = 2 * coeff * ratio / c['target_l0'] / rows
    return coeff * (ratio**2).mean(), zero | {'active': d[:, None] + 0 * f}
  if name == 'target_mean_l0':
    ratio = l0.mean() / c['target_l0'] - 1
    d = 2 * coeff * ratio / c['target_l0'] / rows
    return coeff * ratio**2, zero | {'active': d + 0 * f}
  if name == 'quadratic_frequency':
    p, p0 = active.mean(0), c['frequency_scale']
    value = coeff * (p + p**2 / p0).sum()
    d = coeff * (1 + 2 * p / p0) / rows
    return value, zero | {'active': d[None] + 0 * f}
  if name == 'l1':
    return coeff * f.sum(1).mean(), zero | {'f': coeff / rows + 0 * f}
  if name == 'ri_l1':
    return coeff * (f * norm).sum(1).mean(), zero | {
      'f': coeff / rows * norm + 0 * f,
      'norm': coeff * f.mean(0),
    }
  assert name == 'tanh'
  scale, coeff_p = c['tanh_scale'], c['pre_activation_coeff']
  t = np.tanh(scale * f * norm)
  below = np.maximum(threshold - pre, 0)
  value = coeff * t.sum(1).mean() + coeff_p * (below * norm).sum(1).mean()
  slope = coeff * scale * (1 - t**2)
  return value, zero | {
    'f': slope * norm / rows,
    'pre': -coeff_p * norm * (below > 0) / rows,
    'threshold': coeff_p * norm * (below > 0).mean(0),
    'norm': (slope * f).mean(0) + coeff_p * below.mean(0),
  }


def objective(name, x, params, c, reaches_encoder=False):
  """Value and gradients of squared error plus a penalty.

  Pseudo-derivatives: Eqs. 11 and 12; where they reach the encoder, the step's
  derivative by pre is minus that by the threshold.
  """
  W_enc, b_enc, W_dec, b_dec, log_threshold = params
  threshold, bandwidth = np.exp(log_threshold), c['bandwidth']
  pre, f, x_hat = forward(x, W_enc, b_enc, W_dec, b_dec, threshold)
  value, d = penalty_cotangents(name, pre, f, threshold, W_dec, c)
  d_x_hat = 2 * (x_hat - x) / len(x)
  d_f = d_x_hat @ W_dec.T + d['f']
  window = rectangle((np.maximum(pre, 0) - threshold) / bandwidth) / bandwidth
  jump = window * (threshold * d_f + d['active'])
  d_pre = d_f * (pre > threshold) + d['pre']
  if reaches_encoder:
    d_pre = d_pre + jump * (pre > 0)
  d_threshold = d['threshold'] - jump.sum(0)
  norm = np.linalg.norm(W_dec, axis=1, keepdims=True)
  total = ((x - x_hat) ** 2).sum(1).mean() + value
  return total, {
    'W_enc': (x - b_dec).T @ d_pre,
    'b_enc': d_pre.sum(0),
    'W_dec': f.T @ d_x_hat + d['norm'][:, None] * W_dec / norm,
    'b_dec': d_x_hat.sum(0) - (d_pre @ W_enc.T).sum(0),
    'log_threshold': threshold * d_threshold,
  }
