"""JumpReLU SAEs without very frequent latents, on Gemma 2 9B.

  python -m experiments.sweep --config=configs/quadratic_frequency.py \
      --workdir=DIR --config.activations.store=gs://B/S

Smith et al. 2025 (Google DeepMind, March): the penalty sum p (1 + p / p0) of
firing frequencies p in place of L0, p0 = 0.1, 131,072 latents at layer 20; the
rest as configs/gemma2_9b.py.

Hardware: v5e-8, as gemma2_9b. Tokens: 8.0 billion. Store: gemma2_9b's. Hours:
one SAE 13. Estimated, not run, as there.
"""

from configs import common
from configs import gemma2_9b


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gemma2_9b.get_config()
  c.objective.frequency_scale = 0.1
  common.sweep(c, 'jumprelu/quadratic_frequency/2e-4/4e-4/6e-4/1e-3/2e-3')
  if is_quick:
    common.shorten(c)
  return c
