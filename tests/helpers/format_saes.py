"""Released SAEs of each kind, and folders as other libraries write them."""

import json

from jax import numpy as jnp
import numpy as np
import safetensors.numpy

from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import torch_zip
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


def write_foreign(folder, arrays, config, weights_name, config_name):
  """Writes a folder of arrays and a config, and returns it."""
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  if weights_name.endswith('.pt'):
    torch_zip.write(folder / weights_name, arrays)
  else:
    safetensors.numpy.save_file(arrays, folder / weights_name)
  (folder / config_name).write_text(json.dumps(config))
  return folder
