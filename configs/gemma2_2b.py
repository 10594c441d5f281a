"""Gemma 2 2B, residual stream after layer 12, as Gemma Scope's 16k SAEs.

  python -m experiments.harvest --config=configs/gemma2_2b.py --workdir=STORE
  python -m experiments.sweep --config=configs/gemma2_2b.py --workdir=DIR \
      --config.activations.store=STORE

Hardware: one 80 GB GPU (990 bf16 TFLOP/s peak). Tokens: 500 million harvested,
seen eight times (4 billion). Store: 4.6 kB a token, 2.3 TB. Hours: harvest 0.7
(13 of 26 layers, 1.0 billion parameters); one SAE of 16,384 latents 0.8.

Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'google/gemma-2-2b'
  c.lm.layer = 12
  common.read_the_pile(c, tokens=500_000_000)
  c.sae.num_latents = 2**14
  c.train.steps = 976_562
  if is_quick:
    common.shorten(c)
  return c
