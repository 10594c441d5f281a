"""BatchTopK SAEs on GPT-2 small, residual stream before layer 8.

  python -m experiments.sweep --config=configs/batch_topk.py --workdir=DIR

Bussmann et al. 2024 (arXiv:2412.06410): 12,288 latents, k of 16, 32 and 64,
Adam with betas 0.9 and 0.99 at 3e-4, batches of 4,096, a billion tokens in
contexts of 128, AuxK of 512 at 1/32. There, each activation is centred and
divided by its own deviation; here all are divided by one number.

Hardware: one 24 GB GPU, as gpt2_small. Tokens: 200 million harvested, seen five
times (1.0 billion). Store: 1.5 kB a token, 307 GB. Hours: harvest 0.2, one SAE
0.7. Estimated, not run, as there.
"""

from configs import common
from configs import gpt2_small


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gpt2_small.get_config()
  c.text.context_length = 128
  common.read_the_pile(c, tokens=200_000_000)
  c.sae.num_latents = 12_288
  c.optimizer.learning_rate = 3e-4
  c.optimizer.beta1 = 0.9
  c.optimizer.beta2 = 0.99
  c.train.steps = 244_140
  c.objective.sparsity_warmup_steps = 0
  common.sweep(c, 'batch_topk/aux_k/16/32/64')
  if is_quick:
    common.shorten(c)
  return c
