"""Gemma 2 9B at the paper's nine places: layers 9, 20, 31 by three sites.

  python -m experiments.harvest --config=configs/gemma2_9b.py --workdir=gs://B/S
  python -m experiments.sweep --config=configs/gemma2_9b.py --workdir=DIR \
      --config.activations.store=gs://B/S --config.lm.site=attn_z \
      --config.lm.layer=20

Hardware: v5e-8 (8 x 197 bf16 TFLOP/s, 16 GB). Bytes a chip of the harvest, as
the TPU compiler reports them: docs/results.md (experiments.plan). Tokens: 8.0
billion, as in the paper. Store: 67.6 kB a token for all nine, 541 TB; one
site of one layer 57 to 66 TB; with less room set activations.sequences, name
one site in activations.sites, or train with activations.mode=live. Hours:
harvest 45 (32 of 42 layers, 6.4 billion parameters); one SAE of 131,072
latents 13.

Estimated, not run: harvest FLOPs are 2 x parameters of the layers that run x
tokens, at 40% of the chips' peak; training FLOPs 10 x d_model x num_latents x
tokens (five products), at 50%.
"""

from configs import common


def get_config(arg=''):
  """Returns the recipe; `:quick` is a smoke test of the same model."""
  is_quick = common.parse_arg(arg)
  c = common.gemma_scope()
  c.lm.path = 'google/gemma-2-9b'
  c.lm.layer = 20
  common.read_the_pile(c, tokens=8_000_000_000)
  c.activations.format = 'zarr3'
  c.activations.sites = tuple(
    f'{site}/{layer}'
    for layer in (9, 20, 31)
    for site in ('resid_post', 'mlp_out', 'attn_z')
  )
  c.mesh.update(data=2, latent=4)
  if is_quick:
    common.shorten(c)
  return c
