"""The activations of a run: live, from a store, or harvested into one."""

from __future__ import annotations

import pathlib
import re

import jax

from jumprelu_jax import errors
from jumprelu_jax import hosts as hosts_lib
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import lock
from jumprelu_jax import needs
from jumprelu_jax import whole
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.activations import harvest as harvest_lib
from jumprelu_jax.activations import pairs
from jumprelu_jax.activations import places
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.lm import outliers
from jumprelu_jax.lm import sites


def harvest(
  inputs: inputs_lib.Inputs, folder: str, *, host: int = 0, hosts: int = 1
) -> None:
  """Fills a folder or URL with a store for each of the run's sites.

  Args:
    inputs: from `inputs.prepare`.
    folder: gets a store for each site, and sequences.npy, which a row's origin
      refers to. (For a URL that file is kept in ./sequences instead.)
    host: which of several hosts this is.
    hosts: hosts that share the work.

  Raises:
    errors.InputError: the folder holds stores of something else, or another
      process is this host.
    errors.DiskFullError: no space is left, or it will not do; shards written
      before are usable.
    preemption.PreemptedError: the process was asked to end; likewise.
  """
  is_url = places.is_url(folder)
  name = re.sub(r'\W+', '_', str(folder))
  kept = pathlib.Path('sequences', name) if is_url else pathlib.Path(folder)
  folders = {site: site_folder(folder, site) for site in inputs.harvested}
  for site, there in folders.items():
    if store_lib.exists(there):
      _open_store(inputs, site, there)  # before sequences are written beside it
  if (wanted := inputs.run.activations.sequences) and not is_url:
    needs.check_harvest(inputs, folder, wanted)  # before a long text is packed
  whole.make_folder(kept)
  with lock.held(kept / f'harvest_{host}.lock'):
    plan = inputs.plan(kept / 'sequences.npy')
    needs.check_harvest(inputs, folder, len(plan.tokens_NL))
    stores = {
      there: inputs.describe(site, len(plan.tokens_NL))
      for site, there in folders.items()
    }
    harvest_lib.harvest(
      plan, inputs.tap(inputs.harvested), stores, host=host, hosts=hosts
    )


def site_folder(folder: str, site: sites.Site) -> str:
  """Returns where the store of a site lies in a folder of stores."""
  return f'{str(folder).rstrip("/")}/{site.name}_{site.layer}'


def open_shards(
  inputs: inputs_lib.Inputs, workdir: pathlib.Path
) -> batches_lib.Shards:
  """Returns the run's rows: live, from a store given, or harvested now."""
  config = inputs.run.activations
  if config.mode == 'live':
    if jax.process_count() > 1:
      raise errors.InputError(
        "config.activations.mode='live' runs in one process, here are "
        f'{jax.process_count()}; harvest first and set '
        'config.activations.store.'
      )
    plan = inputs.plan(workdir / 'sequences.npy')
    return harvest_lib.Live(plan, inputs.tap(inputs.trained_on))
  folder = config.store or str(workdir / 'activations')
  if not config.store:
    hosts_lib.from_first(
      'harvest', lambda: harvest(inputs.on_this_host(), folder)
    )
    hosts_lib.check_visible(
      workdir / 'activations', lambda: _is_harvested(inputs, folder)
    )
  stores = [
    _open_store(inputs, site, site_folder(folder, site))
    for site in inputs.trained_on
  ]
  for store in stores:
    if not store.is_complete:
      raise errors.InputError(
        f'config.activations.store={config.store}: {len(store.missing)} of '
        f'{store.description.num_shards} shards are not there; finish it with '
        'experiments.harvest.'
      )
  return stores[0] if len(stores) == 1 else pairs.PairedStores(*stores)


def norm_limits(
  inputs: inputs_lib.Inputs, workdir: pathlib.Path
) -> outliers.Limits:
  """Returns the norms beyond which positions are not trained on; () if none.

  The filter's multiple of the median norm of the first shard, at each harvested
  site whose store is there.

  Raises:
    errors.InputError: a shard is damaged.
  """
  config = inputs.run.activations
  if not config.max_norm_multiple:
    return ()
  folder = config.store or str(workdir / 'activations')
  stores = {site: site_folder(folder, site) for site in inputs.harvested}
  return tuple(
    (site, config.max_norm_multiple * store_lib.Store(there).median_norm())
    for site, there in stores.items()
    if store_lib.exists(there)
  )


def find_sequences(
  inputs: inputs_lib.Inputs, workdir: pathlib.Path
) -> pathlib.Path | None:
  """Returns the file of the text that a run trains on, if it is there."""
  config = inputs.run.activations
  folder = config.store or workdir / 'activations'
  folder = workdir if config.mode == 'live' else pathlib.Path(folder)
  path = folder / 'sequences.npy'
  return path if path.is_file() else None


def _is_harvested(inputs, folder):
  """True once every store that training reads is there and complete."""
  folders = [site_folder(folder, site) for site in inputs.trained_on]
  return all(
    store_lib.exists(there) and store_lib.Store(there).is_complete
    for there in folders
  )


def _open_store(inputs, site, folder):
  """Returns the store of a site; InputError if it is of something else."""
  store = store_lib.Store(folder)
  store.check_is_of(inputs.describe(site, store.description.num_sequences))
  return store
