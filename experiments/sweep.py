"""Trains the SAEs of config.sweep.saes and draws the Pareto plot.

  python -m experiments.sweep --config=configs/quickstart.py --workdir=DIR

Harvests activations, trains, evaluates on held-out text, and writes
results.csv, pareto.png, pareto.pdf and a folder for each SAE. The same command
continues a run that was killed.
"""

from absl import flags

from experiments import launch
from jumprelu_jax import hosts
from jumprelu_jax import inputs
from jumprelu_jax import plot
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sweeps

_WORKDIR = flags.DEFINE_string(
  'workdir', None, "The run's folder.", required=True
)


def main():
  run = launch.run_config()
  swept = sweeps.expand(run)
  prepared = inputs.prepare(next(iter(swept.values())))
  with run_folder.claimed(_WORKDIR.value, run):
    rows = runs.run_all(prepared, swept, _WORKDIR.value)
    if not hosts.is_first():
      return
    plot.pareto(rows, _WORKDIR.value)
  print(results.format_table(rows))
  progress.say(f'{_WORKDIR.value}: results.csv, pareto.png, pareto.pdf')


if __name__ == '__main__':
  launch.run(main, in_processes=True)
