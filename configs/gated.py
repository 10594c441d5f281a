"""Gated SAEs at the paper's nine places in Gemma 2 9B, its first baseline.

  python -m experiments.sweep --config=configs/gated.py --workdir=DIR \
      --config.activations.store=gs://B/S

Rajamanoharan et al. 2024 (arXiv:2404.16014): Adam with beta1 = 0 and beta2 =
0.999, learning rate 3e-4, batches of 4,096, 300,000 steps, unit decoder rows,
2^17 latents; and with RI-L1 as in arXiv:2407.14435, App. D, decoder rows free
from norm 0.1. Resampling of dead latents is left out; AuxK may be joined
('gated+aux_k'). Lambdas are not published in these units; these give L0s of 10
to 100 on the embedded model.

Hardware: v5e-8, as gemma2_9b. Tokens: 1.2 billion of its 8. Store: gemma2_9b's.
Hours: one SAE 2. Estimated, not run, as there.
"""

from configs import common
from configs import gemma2_9b


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gemma2_9b.get_config()
  c.optimizer.learning_rate = 3e-4
  c.train.steps = 300_000
  common.sweep(c, 'gated/gated/0.02/0.05/0.1/0.2')
  if is_quick:
    common.shorten(c)
  return c
