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
