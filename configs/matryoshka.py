"""Matryoshka SAEs on Gemma 2 2B, residual stream after layer 12.

  python -m experiments.sweep --config=configs/matryoshka.py --workdir=DIR \
      --config.activations.store=STORE

Bussmann et al. 2025 (arXiv:2503.17547), over BatchTopK: 65,536 latents nested
at 2,048, 6,144, 14,336 and 30,720, k from 20 to 320, Adam at 3e-4, batches of
2,048, 500 million tokens of the Pile. Ours besides: the same over JumpReLU,
whose L0 penalty sees all latents.

Hardware: one 80 GB GPU, as gemma2_2b. Tokens: 500 million. Store: gemma2_2b's,
2.3 TB. Hours: harvest 0.7, one SAE 0.4. Estimated, not run, as there.
"""

from configs import common
from configs import gemma2_2b


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gemma2_2b.get_config()
  c.sae.num_latents = 65_536
  c.objective.prefixes = (2_048, 6_144, 14_336, 30_720, 65_536)
  c.optimizer.learning_rate = 3e-4
  c.optimizer.beta1 = 0.9
  c.train.steps = 244_140
  c.train.batch_size = 2_048
  common.sweep(
    c,
    'matryoshka_batch_topk/aux_k/20/40/80/160/320',
    'matryoshka_jumprelu/l0/2e-4/6e-4/2e-3',
  )
  if is_quick:
    common.shorten(c)
  return c
