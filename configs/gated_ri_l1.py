"""Gated SAEs trained by RI-L1, Gemma 2 9B: the paper's simpler Gated baseline.

  python -m experiments.sweep --config=configs/gated_ri_l1.py --workdir=DIR \
      --config.activations.store=gs://B/S

Rajamanoharan et al. 2024 (arXiv:2407.14435), App. D: decoder rows of any norm,
from 0.1, in place of a frozen decoder; the rest as configs/gated.py.

Hardware: v5e-8, as gemma2_9b. Tokens: 1.2 billion of its 8. Store: gemma2_9b's.
Hours: one SAE 2. Estimated, not run, as there.
"""

from configs import common
from configs import gated


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gated.get_config()
  c.sae.initial_decoder_norm = 0.1
  common.sweep(c, 'gated_free_norm/gated_ri_l1/0.02/0.05/0.1/0.2')
  if is_quick:
    common.shorten(c)
  return c
