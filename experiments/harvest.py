"""Harvests a language model's activations into stores, to train on many times.

  python -m experiments.harvest --config=configs/gemma2_9b.py --workdir=STORE
  python -m experiments.sweep --config=configs/gemma2_9b.py --workdir=DIR \
      --config.activations.store=STORE

Writes a store for each of `activations.sites` (or the site of `lm`). The same
command finishes a harvest that was killed, and makes a shard again that was
deleted. With --verify every shard is read and its checksum compared.

Several hosts share a harvest through a folder or URL that all of them see: the
same command on each, with --host=I --hosts=N.
"""

from absl import flags

from experiments import launch
from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax import progress
from jumprelu_jax import supply
from jumprelu_jax.activations import store as store_lib

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Folder or URL (zarr3 only) of the stores.', required=True
)
_HOST = flags.DEFINE_integer('host', 0, 'Which of the hosts this is.')
_HOSTS = flags.DEFINE_integer('hosts', 1, 'Hosts that share the harvest.')
_VERIFY = flags.DEFINE_bool('verify', False, 'Check what is there.')


def verify(folders):
  """Reads every shard of some stores; InputError names all damaged ones."""
  said = []
  for folder in folders:
    store = store_lib.Store(folder)
    problems = store.verify()
    if problems:
      said += [f'{folder}: {len(problems)} damaged shards.']
      said += [problem for _, problem in problems]
      continue
    missing = len(store.missing)
    progress.say(
      f'{folder}: '
      + (f'{missing} shards are missing; ' if missing else '')
      + f'{store.num_rows:,} rows verified'
    )
  if said:
    raise errors.InputError(' '.join(said))


def describe(folder):
  """Says what a store holds."""
  store = store_lib.Store(folder)
  progress.say(
    f'{folder}: {store.num_rows:,} rows of {store.d_model}, {store.dtype}, '
    f'mean squared norm {store.mean_squared_norm:.4g}, '
    f'outliers dropped {store.outlier_rate:.3%}'
  )


def main():
  if not 0 <= _HOST.value < _HOSTS.value:
    raise errors.InputError(
      f'--host={_HOST.value} --hosts={_HOSTS.value}: hosts count from 0.'
    )
  run = launch.run_config()
  prepared = inputs.prepare(run)
  folders = [
    supply.site_folder(_WORKDIR.value, site) for site in prepared.harvested
  ]
  if _VERIFY.value:
    verify(folders)
    return
  supply.harvest(prepared, _WORKDIR.value, host=_HOST.value, hosts=_HOSTS.value)
  for folder in folders:
    describe(folder)


if __name__ == '__main__':
  launch.run(main, takes_urls=True)
