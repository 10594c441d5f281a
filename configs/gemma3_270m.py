"""Gemma 3 270M, residual stream after layer 9.

  python -m experiments.sweep --config=configs/gemma3_270m.py --workdir=DIR

Hardware: one 24 GB GPU (83 bf16 TFLOP/s peak). Tokens: 200 million harvested,
seen five times (1 billion). Store: 1.3 kB a token, 256 GB. Hours: harvest 0.2
(10 of 18 layers, 56 million parameters); one SAE of 16,384 latents 0.7.

Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'google/gemma-3-270m'
  c.lm.layer = 9
  common.read_the_pile(c, tokens=200_000_000)
  c.sae.num_latents = 2**14
  c.train.steps = 244_140
  if is_quick:
    common.shorten(c)
  return c
