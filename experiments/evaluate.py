"""Evaluates trained SAEs on the held-out text of their configs.

  python -m experiments.evaluate --sae=DIR/jumprelu_l0_0.001[,DIR/…]

Prints a row for each SAE; writes nothing but, with --out, a results.csv.
"""

import pathlib

from absl import flags

from experiments import launch
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import inputs
from jumprelu_jax import results
from jumprelu_jax import runs

_SAE = flags.DEFINE_list('sae', None, "SAEs' folders.", required=True)
_OUT = flags.DEFINE_string('out', None, 'A results.csv to write.')
_SEQUENCES = flags.DEFINE_integer(
  'sequences', None, "Evaluate on as many sequences, not the config's number."
)


def evaluate(folder, prepared):
  """Returns the row of the SAE in one folder.

  SAEs that are evaluated alike share inputs, and so the model, the text and the
  measurement without an SAE: `prepared` holds them.
  """
  run = runs.load_run(folder)
  if not (folder / export.FILE_NAME).is_file():
    raise errors.InputError(
      f'--sae={folder} holds no {export.FILE_NAME}; give the folder of a '
      'trained SAE.'
    )
  # Evaluation runs on one device, wherever the SAE was trained.
  run = run.with_values({'mesh.data': 1, 'mesh.latent': 1})
  if _SEQUENCES.value is not None:
    run = run.with_values({'evaluation.sequences': _SEQUENCES.value})
  key = (run.lm, run.text, run.evaluation)
  if key not in prepared:
    prepared[key] = inputs.prepare(run)
  return runs.evaluate_folder(folder, run, prepared[key])


def main():
  prepared = {}
  rows = [evaluate(pathlib.Path(folder), prepared) for folder in _SAE.value]
  print(results.format_table(rows))
  if _OUT.value:
    results.write(rows, _OUT.value)


if __name__ == '__main__':
  launch.run(main)
