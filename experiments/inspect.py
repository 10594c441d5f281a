"""What a folder or file of an SAE holds.

python -m experiments.inspect PATH
"""

import dataclasses
import sys

from absl import app
import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub
from jumprelu_jax.exchange import weights


def describe(path):
  """Yields lines about an SAE."""
  name, folder = formats.recognise(hub.resolve_sae(path))
  sae, details = formats.FORMATS[name].read(folder)
  yield f'{folder}: {name}'
  for field in dataclasses.fields(details):
    value = getattr(details, field.name)
    if field.name != 'other' and value not in ('', -1, 0, None):
      yield f'{field.name:14s} {value}'
  for key, array in weights.arrays_of(sae).items():
    low, high = np.min(array), np.max(array)
    shape = ', '.join(map(str, array.shape))
    yield f'{key:14s} [{shape}] from {low:.4g} to {high:.4g}'
  if hasattr(sae, 'k'):
    yield f'{"k":14s} {sae.k}'
  norms_M = np.linalg.norm(np.asarray(sae.W_dec), axis=1)
  yield f'{"decoder norms":14s} {norms_M.min():.4g} to {norms_M.max():.4g}'


def main(argv):
  if len(argv) != 2:
    sys.exit('error: expected one folder or file of an SAE.')
  try:
    for line in describe(argv[1]):
      print(line)
  except errors.InputError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  app.run(main)
