"""Writes an SAE for the Hugging Face hub, in Gemma Scope's layout, with a card.

  python -m experiments.release --sae=DIR --repository=OWNER/NAME --out=FOLDER

writes FOLDER/layer_20/width_16k/average_l0_71 and sends nothing; with --upload
the folder is sent too (log in by `hf auth login`). Several SAEs may be written
into one FOLDER, and sent at the end.
"""

import json

from absl import flags

from experiments import launch
from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax import run_folder
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub

_SAES = flags.DEFINE_list('sae', None, "SAEs' folders.", required=True)
_REPOSITORY = flags.DEFINE_string(
  'repository', None, 'OWNER/NAME on the hub.', required=True
)
_OUT = flags.DEFINE_string('out', None, 'Folder to write to.', required=True)
_FORMAT = flags.DEFINE_enum(
  'format', 'gemma_scope', list(formats.FORMATS), 'To write.'
)
_UPLOAD = flags.DEFINE_bool('upload', False, 'Send it.')
# What the card shows of evaluation.json, where it is there.
_METRICS = (
  'l0', 'fvu', 'delta_lm_loss', 'loss_recovered', 'dead_fraction',
  'frac_over_1pct', 'frac_over_10pct', 'l0_settled',
)  # fmt: skip


def write(folder):
  """Writes one SAE; returns where."""
  sae = api.load_sae(folder)
  return hub.write_release(
    sae.weights,
    sae.details,
    _OUT.value,
    _REPOSITORY.value,
    format_name=_FORMAT.value,
    metrics=metrics_of(folder),
    recipe=recipe_of(folder),
    figure=folder.parent / 'pareto.png',
  )


def metrics_of(folder):
  """Returns what a run's evaluation found, to four digits."""
  path = folder / 'evaluation.json'
  if not path.is_file():
    return {}
  found = run_folder.read_json(path)
  return {
    name: f'{value:.4g}' if isinstance(value, float) else value
    for name in _METRICS
    if isinstance(value := found.get(name), int | float)
  }


def recipe_of(folder):
  """Returns a run's config as JSON, without folders of this machine."""
  path = folder / 'config.json'
  if not path.is_file():
    return ''
  config = run_folder.read_json(path)
  if 'lm' not in config:
    return ''
  config.get('activations', {}).pop('store', None)
  return json.dumps(config, indent=2)


def main():
  if _REPOSITORY.value.count('/') != 1:
    raise errors.InputError(
      f'--repository={_REPOSITORY.value}: expected OWNER/NAME.'
    )
  for folder in map(hub.resolve_sae, _SAES.value):
    progress.say(f'{write(folder)}')
  if _UPLOAD.value:
    progress.say(hub.upload(_OUT.value, _REPOSITORY.value))


if __name__ == '__main__':
  launch.run(main)
