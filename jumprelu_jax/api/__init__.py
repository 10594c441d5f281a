"""SAEs and language models for notebooks and scripts, in a few lines.

  sae = jumprelu_jax.load_sae('runs/quickstart/jumprelu_l0_0.0015')
  lm = jumprelu_jax.load_lm(sae.details.model)
  f_BLM = sae.encode(lm.run('The Congress of the United States', sae.site)[1])
  print(lm.promoted(sae, latent=7))
  print(lm.generate('The', 20, sae.site, lm.steering(sae, 7, strength=5.0)))

Underneath are plain functions of arrays: `sae.weights` and `lm.model` are
pytrees that go through `jax.jit` and `jax.grad`.
"""

from jumprelu_jax.api.lm import LM
from jumprelu_jax.api.lm import load_lm
from jumprelu_jax.api.sae import SAE
from jumprelu_jax.api.sae import load_sae

__all__ = ['LM', 'SAE', 'load_lm', 'load_sae']
