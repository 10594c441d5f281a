"""A JumpReLU SAE with random parameters, and rows for it."""

from jax import numpy as jnp
import numpy as np

from jumprelu_jax.sae import jumprelu

PARAMS = ('W_enc', 'b_enc', 'W_dec', 'b_dec', 'log_threshold')


def make(d_model=12, num_latents=40, use_pre_encoder_bias=True, seed=0):
  """A JumpReLU SAE with every parameter random."""
  rng = np.random.default_rng(seed)
  shapes = {
    'W_enc': (d_model, num_latents),
    'b_enc': (num_latents,),
    'W_dec': (num_latents, d_model),
    'b_dec': (d_model,),
  }
  params = {
    name: jnp.asarray(rng.normal(size=shape) * 0.3, 'float32')
    for name, shape in shapes.items()
  }
  threshold = rng.uniform(0.05, 0.5, num_latents)
  return jumprelu.JumpReLU(
    **params,
    log_threshold=jnp.asarray(np.log(threshold), 'float32'),
    use_pre_encoder_bias=use_pre_encoder_bias,
    compute_dtype='float32',
  ).constrain()


def as_float64(sae):
  return [np.asarray(getattr(sae, name), np.float64) for name in PARAMS]


def make_rows(count=200, d_model=12, seed=1):
  x = np.random.default_rng(seed).normal(size=(count, d_model)) + 0.2
  return jnp.asarray(x, 'float32')
