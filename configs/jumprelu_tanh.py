"""JumpReLU SAEs in Anthropic's recipe of January 2025, on Pythia 160M.

  python -m experiments.sweep --config=configs/jumprelu_tanh.py --workdir=DIR

Conerly et al. 2025 (Circuits Updates, January): a tanh penalty (c = 4, lambda
10 to 20, rising over the whole run) and a pre-activation term (3e-6); the jump
trains the encoder, too; bandwidth 2, log-thresholds from 0.1; Adam at 2e-4,
linear to 0 over the last 20%; gradients clipped at norm 1; batches of 32,768;
decoder rows from U(-1/sqrt(D), 1/sqrt(D)), whose norm is 1/sqrt(3), the encoder
D/M times their transpose, and b_enc such that a latent fires on 10,000/M of the
rows. Their activations have norm sqrt(D), ours 1: bandwidth and thresholds are
divided by sqrt(D), c is multiplied by it, lambda is divided by D, and the
pre-activation's weight by sqrt(D). L0 cannot settle while lambda rises.

Hardware: one 24 GB GPU, as pythia_160m. Tokens: 200 million harvested, seen 2.5
times (500 million). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2, one SAE
0.4. Estimated, not run, as there.
"""

import math

from configs import common
from configs import pythia_160m

_D_MODEL = 768


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = pythia_160m.get_config()
  root = math.sqrt(_D_MODEL)
  c.sae.use_pre_encoder_bias = False
  c.sae.initial_threshold = math.exp(0.1) / root
  c.sae.initial_decoder_norm = 3**-0.5
  c.sae.initial_encoder_norm = _D_MODEL / c.sae.num_latents * 3**-0.5
  c.sae.initial_frequency = min(10_000 / c.sae.num_latents, 0.5)
  c.objective.estimator = 'threshold_and_encoder'
  c.objective.bandwidth = 2 / root
  c.objective.tanh_scale = 4 * root
  c.objective.pre_activation_coeff = 3e-6 / root
  c.train.batch_size = 32_768
  c.train.steps = 15_259
  c.objective.sparsity_warmup_steps = c.train.steps
  c.optimizer.learning_rate = 2e-4
  c.optimizer.threshold_learning_rate = 2e-4
  c.optimizer.beta1 = 0.9
  c.optimizer.decay = 'linear'
  c.optimizer.decay_fraction = 0.2
  c.optimizer.max_gradient_norm = 1.0
  coeffs = [f'{x / _D_MODEL:.4g}' for x in (5, 10, 15, 20)]
  name = 'jumprelu_free_norm/tanh+pre_activation'
  common.sweep(c, f'{name}/{"/".join(coeffs)}')
  if is_quick:
    common.shorten(c)
  return c
