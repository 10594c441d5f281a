"""Llama 3.1 8B, residual stream after layer 16.

  python -m experiments.harvest --config=configs/llama3_8b.py --workdir=STORE
  python -m experiments.sweep --config=configs/llama3_8b.py --workdir=DIR \
      --config.activations.store=STORE

Hardware: one 80 GB GPU (990 bf16 TFLOP/s peak). Tokens: 500 million harvested,
seen twice (1 billion). Store: 8.2 kB a token, 4.1 TB. Hours: harvest 2.6 (17 of
32 layers, 3.7 billion parameters); one SAE of 65,536 latents 1.5.

Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'meta-llama/Llama-3.1-8B'
  c.lm.layer = 16
  common.read_the_pile(c, tokens=500_000_000)
  c.sae.num_latents = 2**16
  c.train.steps = 244_140
  if is_quick:
    common.shorten(c)
  return c
