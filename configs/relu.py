"""ReLU SAEs in Anthropic's recipe of April 2024, on Pythia 160M.

  python -m experiments.sweep --config=configs/relu.py --workdir=DIR

Conerly et al. 2024 (Circuits Updates, April): lambda 5, rising over the first
5% of 200,000 steps; Adam at 5e-5, linear to 0 over the last 20%; gradients
clipped at norm 1; decoder rows free from norm 0.1, the encoder their transpose;
no pre-encoder bias; batches of 4,096. Their activations have norm sqrt(D), ours
1: lambda is 5 / sqrt(D).

Hardware: one 24 GB GPU, as pythia_160m. Tokens: 200 million harvested, seen 4.1
times (819 million). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2, one SAE
0.7. Estimated, not run, as there.
"""

from configs import common
from configs import pythia_160m

_D_MODEL = 768


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = pythia_160m.get_config()
  c.sae.use_pre_encoder_bias = False
  c.sae.initial_encoder_norm = 0.1
  c.sae.initial_decoder_norm = 0.1
  c.train.steps = 200_000
  c.objective.sparsity_warmup_steps = 10_000
  c.optimizer.learning_rate = 5e-5
  c.optimizer.beta1 = 0.9
  c.optimizer.warmup_steps = 0
  c.optimizer.decay = 'linear'
  c.optimizer.decay_fraction = 0.2
  c.optimizer.max_gradient_norm = 1.0
  coeffs = [f'{x / _D_MODEL**0.5:.4g}' for x in (2, 5, 10, 20)]
  common.sweep(c, f'relu/ri_l1/{"/".join(coeffs)}')
  if is_quick:
    common.shorten(c)
  return c
