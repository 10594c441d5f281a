"""What `experiments.sweep` does, but for flags and pictures."""

from jumprelu_jax import inputs
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sweeps


def run_sweep(run, workdir):
  """Returns the rows of a run's sweep."""
  swept = sweeps.expand(run)
  prepared = inputs.prepare(next(iter(swept.values())))
  with run_folder.claimed(workdir, run):
    return runs.run_all(prepared, swept, workdir)
