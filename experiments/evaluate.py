"""Evaluates trained SAEs on the held-out text of their configs.

  python -m experiments.evaluate --sae=DIR/jumprelu_l0_0.001[,DIR/…]

The text is read from the run's folder where it was kept there. Prints a row for
each SAE; writes nothing but, with --out, a results.csv or, with --json, all
metrics.
"""

from absl import flags

from experiments import launch
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import inputs
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import whole
from jumprelu_jax.exchange import hub

_SAE = flags.DEFINE_list('sae', None, "SAEs' folders.", required=True)
_OUT = flags.DEFINE_string('out', None, 'A results.csv to write.')
_JSON = flags.DEFINE_string('json', None, 'A JSON list of rows to write.')
_SEQUENCES = flags.DEFINE_integer(
  'sequences', None, "Evaluate on as many sequences, not the config's number."
)
_IMPORTANCE = flags.DEFINE_integer(
  'importance_sequences', None, 'Measure importance_uniformity on as many.'
)
_SPLICE_SPECIAL = flags.DEFINE_bool(
  'splice_special', None, 'Replace activations of special positions too.'
)


def load(folder):
  """Returns the config of the SAE in a folder, changed by the flags."""
  run = run_folder.load_run(folder)
  if not (folder / export.FILE_NAME).is_file():
    raise errors.InputError(
      f'--sae={folder} holds no {export.FILE_NAME}; give the folder of a '
      'trained SAE.'
    )
  changes = {
    'evaluation.sequences': _SEQUENCES.value,
    'evaluation.importance_sequences': _IMPORTANCE.value,
    'evaluation.splice_special': _SPLICE_SPECIAL.value,
    # Evaluation runs on one device, wherever the SAE was trained.
    'mesh.data': 1,
    'mesh.latent': 1,
    'mesh.sweep': 1,
  }
  return run.with_values({k: v for k, v in changes.items() if v is not None})


def heldout(folder):
  """Returns where the run of an SAE's folder keeps its held-out text."""
  return folder.resolve().parent / runs.HELDOUT


def evaluate(folders):
  """Returns the rows of the SAEs in some folders.

  SAEs that are evaluated alike share inputs, and so the model, the text, the
  measurement without an SAE, and the pass over the text.
  """
  alike = {}
  for folder in folders:
    run = load(folder)
    said = heldout(folder).with_suffix('.json')  # with a checksum
    kept = said.read_bytes() if said.exists() else b''
    key = (kept, run.lm, run.text, run.evaluation)
    alike.setdefault(key, []).append((folder, run))
  rows = {}
  for pairs in alike.values():
    folder, run = pairs[0]
    prepared = inputs.prepare(run).find_heldout(heldout(folder))
    for folder, row, _ in sae_folders.evaluate(pairs, prepared):
      rows[folder] = row
  return [rows[folder] for folder in folders]


def main():
  rows = evaluate([hub.resolve_sae(folder) for folder in _SAE.value])
  print(results.format_table(rows))
  if _OUT.value:
    results.write(rows, _OUT.value)
  if _JSON.value:
    whole.write_json(_JSON.value, rows)


if __name__ == '__main__':
  launch.run(main)
