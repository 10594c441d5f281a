"""Seconds to load an SAE from files, beside reading their bytes.

  python -m experiments.benchmark.load --format=gemma_scope

Random weights, by default of the shapes of Gemma Scope's 16k SAEs of Gemma 2
2B; the files are in the page cache, so disk time comes on top.
"""

import pathlib
import tempfile
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch
from jumprelu_jax import api
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.sae import released

_FORMAT = flags.DEFINE_enum('format', 'gemma_scope', list(formats.FORMATS), '')
_D_MODEL = flags.DEFINE_integer('d_model', 2304, 'Size of an activation.')
_NUM_LATENTS = flags.DEFINE_integer('num_latents', 16384, 'Latents.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Times to load.')


def random_sae(d_model, num_latents):
  """Returns an SAE of random weights."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.standard_normal(shape, 'float32'))

  return released.SAE(
    W_enc=draw(d_model, num_latents),
    b_enc=draw(num_latents),
    W_dec=draw(num_latents, d_model),
    b_dec=draw(d_model),
    threshold=jnp.abs(draw(num_latents)),
  )


def seconds_of(fn):
  began = time.perf_counter()
  fn()
  return time.perf_counter() - began


def main():
  details = details_lib.Details(model='random', site='resid_post', layer=0)
  with tempfile.TemporaryDirectory() as parent:
    folder = pathlib.Path(parent) / 'sae'
    sae = random_sae(_D_MODEL.value, _NUM_LATENTS.value)
    formats.save(sae, details, folder, _FORMAT.value)
    files = list(folder.iterdir())

    def read():
      for path in files:
        path.read_bytes()

    def load():
      jax.block_until_ready(api.load_sae(folder).weights)

    for _ in range(_ROUNDS.value):
      print(f'bytes {seconds_of(read):.3f} s, SAE {seconds_of(load):.3f} s')


if __name__ == '__main__':
  launch.run(main)
