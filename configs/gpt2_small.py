"""GPT-2 small, residual stream before layer 8: the field's first test subject.

  python -m experiments.sweep --config=configs/gpt2_small.py --workdir=DIR

Hardware: one 24 GB GPU (83 bf16 TFLOP/s peak). Tokens: 200 million harvested,
seen 2.5 times (500 million). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2
(9 of 12 layers, 64 million parameters); one SAE of 24,576 latents 0.6.

Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'openai-community/gpt2'
  c.lm.site = 'resid_pre'
  c.lm.layer = 8
  common.read_the_pile(c, tokens=200_000_000)
  c.sae.num_latents = 24_576
  c.train.steps = 122_070
  if is_quick:
    common.shorten(c)
  return c
