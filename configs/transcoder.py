"""Gemma Scope's transcoders: Gemma 2 2B's MLP of layer 12, input to output.

  python -m experiments.sweep --config=configs/transcoder.py --workdir=DIR

Lieberum et al. 2024 (arXiv:2408.05147), section 3: read the MLP's input after
its RMSNorm, predict its output; no pre-encoder bias, an encoder that does not
start as the decoder's transpose, 16,384 latents, the rest as for SAEs. With an
affine skip as Gemma Scope 2, and TopK as sparsify (Paulo et al. 2025,
arXiv:2501.18823).

Hardware: one 80 GB GPU, as gemma2_2b. Tokens: 500 million harvested, seen eight
times (4 billion). Store: two sites, 9.2 kB a token, 4.6 TB. Hours: harvest 0.7,
one transcoder 0.8. Estimated, not run, as there.
"""

from configs import common
from configs import gemma2_2b


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = gemma2_2b.get_config()
  c.lm.site = 'mlp_in'
  c.lm.target_site = 'mlp_out'
  common.sweep(
    c,
    'jumprelu_transcoder/l0/2e-4/6e-4/2e-3',
    'jumprelu_skip_transcoder/l0/2e-4/6e-4/2e-3',
    'topk_transcoder/aux_k/32/64/128',
    'topk_skip_transcoder/aux_k/32/64/128',
  )
  if is_quick:
    common.shorten(c)
  return c
