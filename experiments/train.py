"""Trains the SAE of config.sae and config.objective, and evaluates it.

  python -m experiments.train --config=configs/quickstart.py \
      --config.objective.sparsity_coeff=1e-3 --workdir=DIR

The same command continues a run that was killed.
"""

from absl import flags

from experiments import launch
from jumprelu_jax import architectures
from jumprelu_jax import hosts
from jumprelu_jax import inputs
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import runs

_WORKDIR = flags.DEFINE_string(
  'workdir', None, "The run's folder.", required=True
)


def main():
  run = launch.run_config()
  prepared = inputs.prepare(run)
  named = {architectures.name(run): run}
  with run_folder.claimed(_WORKDIR.value, run):
    rows = runs.run_all(prepared, named, _WORKDIR.value)
  if not hosts.is_first():
    return
  print(results.format_table(rows))
  progress.say(f'{_WORKDIR.value}: results.csv')


if __name__ == '__main__':
  launch.run(main, in_processes=True)
