"""Pythia 160M (deduplicated), residual stream after layer 8.

  python -m experiments.sweep --config=configs/pythia_160m.py --workdir=DIR

Hardware: one 24 GB GPU (83 bf16 TFLOP/s peak). Tokens: 200 million harvested,
seen 2.5 times (500 million). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2
(9 of 12 layers, 64 million parameters); one SAE of 16,384 latents 0.4.

Pythia starts no sequence with a token of its own; <|endoftext|> (0) serves.
Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'EleutherAI/pythia-160m-deduped'
  c.lm.layer = 8
  common.read_the_pile(c, tokens=200_000_000)
  c.sae.num_latents = 2**14
  c.train.steps = 122_070
  if is_quick:
    common.shorten(c)
  return c
