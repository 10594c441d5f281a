"""Float64 NumPy oracles, written from the papers' formulas.

Losses are functions of parameters by name, {'W_enc': ...}. `gradient` steps
into the imaginary direction, so that only the formula has to be written: the
real part of an array is its value, the imaginary part its derivative. Hence
comparisons look at real parts, and `.real` stops a gradient.
"""

import types

import numpy as np


def gradient(loss, params):
  """Returns the derivatives of loss(params), exact but for rounding.

  loss(p + ih) = loss(p) + ih loss'(p): nothing is subtracted (Squire and Trapp,
  1998).
  """
  derivatives = {name: np.zeros(value.shape) for name, value in params.items()}
  for name, value in params.items():
    for index in np.ndindex(value.shape):
      moved = value.astype(complex)
      moved[index] += 1e-30j
      derivatives[name][index] = loss(params | {name: moved}).imag / 1e-30
  return derivatives


def rectangle(u):
  """K(u) = 1 for -1/2 < u < 1/2 (arXiv:2407.14435, section 3)."""
  return np.where(np.abs(u) < 0.5, 1.0, 0.0)


def relu(z):
  return z * (z.real > 0)


def norms(W):
  """Of the rows; np.linalg.norm would take a complex number's modulus."""
  return np.sqrt((W**2).sum(1))


def mean_sum(values):
  return values.sum(1).mean()


def largest(values, count):
  """1 at the `count` largest elements of each row, by a sort."""
  order = np.argsort(-values.real, axis=1)
  chosen = np.zeros(values.shape)
  np.put_along_axis(chosen, order[:, :count], 1.0, axis=1)
  return chosen


# The forward pass and Eq. 9 with its gradients by hand.


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


# Latents of every architecture: `pre`, `f`, `active` (1 where it fires), `size`
# (what L1 weighs) and, where there are some, `threshold`.


def encoded(x, p, uses_b_dec=True):
  """X W_enc, or (x - b_dec) W_enc with a pre-encoder bias."""
  return (x - p['b_dec'] if uses_b_dec else x) @ p['W_enc']


def jumprelu(x, p, bandwidth, *, uses_b_dec=True, reaches_encoder=False):
  """Eqs. 4 and 8; the imaginary parts are Eqs. 11 and 12.

  Where the estimator reaches the encoder, the step's derivative by pre is minus
  that by the threshold. The window sees ReLU(pre).
  """
  threshold = p['threshold'] if 'threshold' in p else np.exp(p['log_threshold'])
  pre = encoded(x, p, uses_b_dec) + p['b_enc']
  positive = relu(pre)
  active = (positive.real > threshold.real).astype(float)
  distance = positive.real - threshold.real
  window = rectangle(distance / bandwidth) / bandwidth
  towards = -np.imag(threshold) + reaches_encoder * np.imag(positive)
  f = pre * active + 1j * threshold.real * window * towards
  return types.SimpleNamespace(
    pre=pre,
    f=f,
    active=active + 1j * window * towards,
    size=f,
    threshold=threshold,
  )


def rectified(x, p, *, uses_b_dec=True):
  """Latents of a ReLU SAE."""
  pre = encoded(x, p, uses_b_dec) + p['b_enc']
  return types.SimpleNamespace(
    pre=pre, f=relu(pre), active=(pre.real > 0) * 1.0, size=relu(pre)
  )


def gated(x, p, *, uses_b_dec=True):
  """arXiv:2404.16014, Eqs. 5 to 7: W_mag = exp(r_mag) W_gate."""
  centred = x - p['b_dec'] if uses_b_dec else x
  gate = centred @ p['W_enc'] + p['b_gate']
  W_mag = p['W_enc'] * np.exp(p['r_mag'])
  f = (gate.real > 0) * relu(centred @ W_mag + p['b_mag'])
  return types.SimpleNamespace(
    pre=gate, f=f, active=(f.real > 0) * 1.0, size=relu(gate)
  )


def top_k(x, p, k, *, uses_b_dec=True):
  """arXiv:2406.04093, Eq. 2, with the ReLU of its released code."""
  pre = encoded(x, p, uses_b_dec) + p['b_enc']
  f = relu(pre) * largest(pre, k)
  return types.SimpleNamespace(pre=pre, f=f, active=(f.real > 0) * 1.0, size=f)


def batch_top_k(x, p, k, *, uses_b_dec=True):
  """arXiv:2412.06410, Eq. 3: the k of each row become k B of the batch."""
  pre = encoded(x, p, uses_b_dec) + p['b_enc']
  of_batch = largest(relu(pre).reshape(1, -1), k * len(x))
  f = relu(pre) * of_batch.reshape(pre.shape)
  return types.SimpleNamespace(pre=pre, f=f, active=(f.real > 0) * 1.0, size=f)


# Losses.


def prefix_predictions(h, p, prefixes):
  """arXiv:2503.17547: the reconstruction of each prefix of the latents."""
  return [h.f[:, :m] @ p['W_dec'][:m] + p['b_dec'] for m in prefixes]


def predictions(h, x, p):
  """The reconstruction, with a transcoder's skip if it has one."""
  y_hat = h.f @ p['W_dec'] + p['b_dec']
  return [y_hat + x @ p['W_skip'] if 'W_skip' in p else y_hat]


def objective(name, h, y, y_hats, p, c):
  """Squared errors plus the penalties that a name joins by +."""
  errors = sum(mean_sum((y - y_hat) ** 2) for y_hat in y_hats)
  residual = (y - y_hats[-1]).real
  return errors + sum(
    PENALTIES[part](h, y, residual, p, c) for part in name.split('+')
  )


def _l0(h, y, residual, p, c):
  """arXiv:2407.14435, Eq. 9."""
  return c['sparsity_coeff'] * mean_sum(h.active)


def _target_l0(h, y, residual, p, c):
  """arXiv:2407.14435, Eq. 40."""
  ratio = h.active.sum(1) / c['target_l0']
  return c['sparsity_coeff'] * ((ratio - 1) ** 2).mean()


def _target_mean_l0(h, y, residual, p, c):
  ratio = mean_sum(h.active) / c['target_l0']
  return c['sparsity_coeff'] * (ratio - 1) ** 2


def _quadratic_frequency(h, y, residual, p, c):
  p_M = h.active.mean(0)
  return c['sparsity_coeff'] * (p_M + p_M**2 / c['frequency_scale']).sum()


def _tanh(h, y, residual, p, c):
  """Anthropic, January 2025; activations are not negative."""
  argument = c['tanh_scale'] * h.f * norms(p['W_dec'])
  return c['sparsity_coeff'] * mean_sum(np.tanh(argument))


def _pre_activation(h, y, residual, p, c):
  below = relu(h.threshold - h.pre) * norms(p['W_dec'])
  return c['pre_activation_coeff'] * mean_sum(below)


def _l1(h, y, residual, p, c):
  return c['sparsity_coeff'] * mean_sum(h.size)


def _ri_l1(h, y, residual, p, c):
  """arXiv:2407.14435, App. D."""
  return c['sparsity_coeff'] * mean_sum(h.size * norms(p['W_dec']))


def _gated(h, y, residual, p, c):
  """arXiv:2404.16014, Eq. 8: its last term has a frozen decoder."""
  y_hat = h.size @ p['W_dec'].real + p['b_dec'].real
  return _l1(h, y, residual, p, c) + mean_sum((y - y_hat) ** 2)


def _gated_ri_l1(h, y, residual, p, c):
  """arXiv:2407.14435, App. D: nothing is frozen."""
  y_hat = h.size @ p['W_dec'] + p['b_dec']
  return _ri_l1(h, y, residual, p, c) + mean_sum((y - y_hat) ** 2)


def _aux_k(h, y, residual, p, c):
  """arXiv:2406.04093, A.2, as a share of what the others left."""
  dead = np.flatnonzero(c['dead_M'])
  if not len(dead):
    return np.complex128(0)
  pre, W_dec = h.pre[:, dead], p['W_dec'][dead]
  e_hat = (relu(pre) * largest(pre, c['aux_k'])) @ W_dec
  share = mean_sum((residual - e_hat) ** 2) / mean_sum(residual**2)
  return c['aux_k_coeff'] * share


PENALTIES = {
  'reconstruction': lambda h, y, residual, p, c: 0,
  'l0': _l0,
  'target_l0': _target_l0,
  'target_mean_l0': _target_mean_l0,
  'quadratic_frequency': _quadratic_frequency,
  'tanh': _tanh,
  'pre_activation': _pre_activation,
  'l1': _l1,
  'ri_l1': _ri_l1,
  'gated': _gated,
  'gated_ri_l1': _gated_ri_l1,
  'aux_k': _aux_k,
}
