"""Released SAEs of each kind, to be written in every format."""

from jax import numpy as jnp
import numpy as np

from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.sae import released

D, M = 8, 24


DETAILS = details_lib.Details(
  model='google/gemma-2-2b', site='resid_post', layer=3, l0=7.5
)


TRANSCODER = details_lib.Details(
  model='google/gemma-2-2b',
  site='mlp_in',
  layer=3,
  target_site='mlp_out',
  target_layer=3,
)


def random(*shape, seed=0):
  values = np.random.default_rng([seed, *shape]).normal(size=shape)
  return values.astype('float32')


def maps():
  return {
    'W_enc': random(D, M),
    'b_enc': random(M),
    'W_dec': random(M, D),
    'b_dec': random(D, seed=1),
  }


def on_device(arrays):
  return {name: jnp.asarray(array) for name, array in arrays.items()}


SAES = {
  'jumprelu': released.SAE(
    **on_device(maps()), threshold=jnp.abs(random(M, seed=2))
  ),
  'relu': released.SAE(**on_device(maps()), threshold=jnp.zeros(M)),
  'topk': released.TopKSAE(**on_device(maps()), k=5),
  'skip': released.SAE(
    **on_device(maps()),
    threshold=jnp.ones(M),
    W_skip=jnp.asarray(random(D, D, seed=3)),
  ),
  'topk_skip': released.TopKSAE(
    **on_device(maps()), k=5, W_skip=jnp.asarray(random(D, D, seed=3))
  ),
}
