"""Draws a random SAE of a trained one's shape and L0.

  python -m experiments.random_sae --like=runs/quickstart/topk_aux_k_16 \
      --out=runs/random_16

The folder has the trained SAE's config.json, so that what opens one opens the
other; details.json names its architecture `random`.
"""

import dataclasses
import pathlib

from absl import flags

from experiments import launch
from jumprelu_jax import errors
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import progress
from jumprelu_jax import random_sae
from jumprelu_jax import run_folder
from jumprelu_jax import seals
from jumprelu_jax import seeds
from jumprelu_jax import whole
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub
from jumprelu_jax.exchange import own

_LIKE = flags.DEFINE_string(
  'like', None, 'Folder of a trained SAE.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_L0 = flags.DEFINE_float('l0', None, "L0; by default the trained SAE's.")
_NUM_LATENTS = flags.DEFINE_integer(
  'num_latents', None, "Latents; by default the trained SAE's."
)
_POSITIONS = flags.DEFINE_integer(
  'positions', 65_536, 'Of the held-out text, to set thresholds on.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the directions.')


def main():
  like, out = hub.resolve_sae(_LIKE.value), pathlib.Path(_OUT.value)
  run = run_folder.load_run(like)
  trained, details = formats.load(like)
  l0 = details.l0 if _L0.value is None else _L0.value
  num_latents = _NUM_LATENTS.value or trained.W_enc.shape[1]
  errors.check_least(
    1, {'--num_latents': num_latents, '--positions': _POSITIONS.value}
  )
  seeds.check('--seed', _SEED.value)
  if l0 is None:
    raise errors.InputError(
      f'--like={like} has no evaluation.json that says its L0; give --l0.'
    )
  if details.target_site:
    raise errors.InputError(
      f'--like={like} is a transcoder; give an SAE, not something that '
      'predicts another site.'
    )
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise errors.InputError(f'--out={out} holds something; give a new folder.')
  run = run.with_values({'mesh.data': 1, 'mesh.latent': 1, 'mesh.sweep': 1})
  limits = run_folder.read_limits(like, run)
  setting = dataclasses.replace(inputs_lib.prepare(run).setting, limits=limits)
  x_ND = random_sae.activations(setting, _POSITIONS.value)
  sae = random_sae.draw(seeds.key(_SEED.value), x_ND, num_latents, l0)
  whole.write_json(out / own.RUN, run_folder.read_json(like / own.RUN))
  run_folder.write_limits(out, limits)
  other = {'like': like.name, 'seed': _SEED.value, 'positions': len(x_ND)}
  details = dataclasses.replace(
    details, trained_as='random', l0=float(l0), other=other
  )
  own.write(sae, details, out)
  seals.write(out, 'a random SAE')
  progress.say(
    f'{out}: random, {len(sae.threshold):,} latents, L0 {l0:.4g} on '
    f'{len(x_ND):,} positions'
  )


if __name__ == '__main__':
  launch.run(main)
