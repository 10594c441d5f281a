"""A run's folder, and the way from a config to a table of results.

  DIR/config.json          the resolved config; a folder belongs to one config
  DIR/inputs.json          checksums of the model and of the held-out tokens
  DIR/activations/         sequences.npy and a store for each site
  DIR/<name of an SAE>/    config.json, params.npz (folded), latents.npz (how
                           often each latent fires), evaluation.json (all
                           metrics), metrics.jsonl, seal.json (checksums of
                           these), tensorboard/, checkpoints/
  DIR/results.csv          one row for each SAE
  DIR/pareto.png, .pdf     for sweeps

Each stage seals what it has written and is skipped when that is under the seal,
so a run that was killed is continued by the same command.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import math
import os
import pathlib
import re

import jax
import numpy as np

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import export
from jumprelu_jax import hosts as hosts_lib
from jumprelu_jax import identity
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import lock
from jumprelu_jax import loop
from jumprelu_jax import metrics
from jumprelu_jax import needs
from jumprelu_jax import results
from jumprelu_jax import seals
from jumprelu_jax import train
from jumprelu_jax import whole
from jumprelu_jax import writer
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.activations import harvest as harvest_lib
from jumprelu_jax.activations import pairs
from jumprelu_jax.activations import places
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.lm import sites

_EVALUATION = 'evaluation.json'
_INPUTS = 'inputs.json'
# What of an SAE's folder is sealed when it is trained.
_TRAINED = ('config.json', export.FILE_NAME, 'metrics.jsonl')
_ABOUT = 'an SAE'
# Of SAEs' parameters that are evaluated in one pass over the text, and of
# states of training, for each device, that are trained on one stream.
_EVALUATED_BYTES = 2**31
_TRAINED_BYTES = 2**32


def claim(workdir: str | os.PathLike, run: config_lib.RunConfig) -> None:
  """Makes a folder the run's own, or checks that it already is.

  Raises:
    errors.InputError: the folder holds a run with another config, or something
      else; it is left as it is.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  if not hosts_lib.is_first():
    hosts_lib.wait_for(path.exists)
  if path.exists():
    _check_same_config(path, run)
    return
  if workdir.exists() and not (workdir.is_dir() and _is_empty(workdir)):
    raise errors.InputError(
      f'--workdir={workdir} exists and holds no run; give an empty or a new '
      'folder.'
    )
  workdir.mkdir(parents=True, exist_ok=True)
  whole.write_json(path, run.to_dict())


@contextlib.contextmanager
def claimed(
  workdir: str | os.PathLike, run: config_lib.RunConfig
) -> Iterator[None]:
  """Claims a folder and holds its lock while it lasts.

  Raises:
    errors.InputError: as `claim`; or another process is at work there.
  """
  claim(workdir, run)
  if not hosts_lib.is_first():
    yield
    return
  with lock.held(pathlib.Path(workdir) / 'run.lock'):
    claim(workdir, run)  # another may have claimed it at the same time
    for path in pathlib.Path(workdir).rglob('*.partial'):
      path.unlink()  # of a process that was killed while it wrote
    yield


def _is_empty(workdir):
  """True but for what a process left that was killed as it claimed it."""
  begun = set(workdir.glob('config.json.*.partial'))
  return set(workdir.iterdir()) <= begun | {workdir / 'run.lock'}


def run_all(
  inputs: inputs_lib.Inputs,
  named: Mapping[str, config_lib.RunConfig],
  workdir: str | os.PathLike,
) -> list[dict[str, object]]:
  """Harvests, trains and evaluates an SAE for each config.

  Args:
    inputs: from `inputs.prepare`; the configs differ from its own in no more
      than what `sweeps.expand` fills, or in other parts of training.
    named: a config for each SAE, by its name (`architectures.name` in sweeps).
    workdir: a folder that `claim` has accepted.

  Returns:
    The rows of results.csv, which is written; none in any process but the
    first, which evaluates alone.

  Raises:
    errors.InputError: an SAE with another config is there, or what is there
      is damaged.
    errors.DiskFullError: what is to be written does not fit on the disk.
    preemption.PreemptedError: the process was asked to end.
  """
  workdir = pathlib.Path(workdir)
  runs = {workdir / name: run for name, run in named.items()}
  for folder, run in runs.items():
    if (folder / 'config.json').exists():
      _check_same_config(folder / 'config.json', run)

  if hosts_lib.is_first():
    _check_unchanged(workdir, {'model': inputs.model_digests})

  def without(name):
    return [(f, run) for f, run in runs.items() if not _has(f, name)]

  if to_train := without(export.FILE_NAME):
    if hosts_lib.is_first():
      pending = {folder.name: run for folder, run in to_train}
      needs.check_run(inputs, workdir, pending)
    _train_all(to_train, inputs, workdir)
  if not hosts_lib.is_first():
    return []
  to_evaluate, here = without(_EVALUATION), inputs.on_this_host()
  if to_evaluate:
    _check_unchanged(workdir, {'held-out tokens': here.heldout_digest})
  for folder, row, latents in evaluate_folders(to_evaluate, here):
    with whole.replacing(folder / 'latents.npz') as file:
      np.savez(file, **latents)
    whole.write_json(folder / _EVALUATION, row)
    seals.write(folder, _ABOUT, (*_TRAINED, 'latents.npz', _EVALUATION))
  rows = [_read_row(folder / _EVALUATION) for folder in runs]
  results.write(rows, workdir / 'results.csv')
  return rows


def _check_unchanged(workdir, digests):
  """Raises InputError unless inputs are those that the run began with."""
  path, found = workdir / _INPUTS, {}
  if path.exists():
    try:
      found = seals.check_signed(_read_json(path))
    except ValueError as error:
      raise errors.InputError(
        f'{path} is damaged: {error}. Remove it if the model and the texts are '
        'as they were.'
      ) from error
  before = config_lib.flatten(
    {key: found[key] for key in digests if key in found}
  )
  changed = identity.differences(before, config_lib.flatten(digests))
  if before and changed:
    raise errors.InputError(
      f'{workdir} was begun with other inputs (checksums of {changed}); '
      'restore them, or give another --workdir.'
    )
  if not before:
    whole.write_json(path, seals.signed({**found, **digests}))


def _has(folder, name):
  """True if a stage has written its file; InputError if one is damaged."""
  if not seals.is_sealed(folder, name):
    return False
  try:
    seals.read(folder)
  except seals.BrokenSealError as error:
    raise errors.InputError(
      f'{folder} is damaged: {error}. Restore that file; or remove '
      f'{folder / seals.NAME} and give the same command again: the SAE is '
      'written anew from its last checkpoint.'
    ) from error
  return True


def _read_row(path):
  row = _read_json(path)
  if lacking := [name for name in results.COLUMNS if name not in row]:
    raise errors.InputError(
      f'{path} lacks {", ".join(lacking)}; remove it and give the same command '
      'again: the SAE is evaluated anew.'
    )
  return row


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
  kept.mkdir(parents=True, exist_ok=True)
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
  if not config.store and hosts_lib.is_first():
    harvest(inputs.on_this_host(), folder)
  if not hosts_lib.is_first():
    hosts_lib.wait_for(lambda: _is_harvested(inputs, folder))
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


def _is_harvested(inputs, folder):
  """True once every store that training reads is there and complete."""
  folders = [site_folder(folder, site) for site in inputs.trained_on]
  return all(
    store_lib.exists(there) and store_lib.Store(there).is_complete
    for there in folders
  )


def evaluate_folders(
  folders: Sequence[tuple[pathlib.Path, config_lib.RunConfig]],
  inputs: inputs_lib.Inputs,
) -> Iterator[tuple[pathlib.Path, dict[str, object], dict[str, np.ndarray]]]:
  """Evaluates SAEs on the held-out text, as many in one pass as fit.

  Args:
    folders: of SAEs, each with its config.
    inputs: the model, the text and the site, for all of them.

  Yields:
    A folder, its row (that of results.csv, and more; None where a metric is not
    defined), and what `metrics.latents` knows of its latents.

  Raises:
    errors.InputError: a folder's SAE is damaged or not for the model's site.
  """
  for group in _evaluated_together(folders):
    saes = [_load_sae(folder, inputs) for folder, _ in group]
    measured = evaluation.measure(saes, inputs.setting, inputs.baseline)
    for (folder, run), sae, sums in zip(group, saes, measured, strict=True):
      found = metrics.finish(sums, inputs.baseline)
      yield folder, _row(folder, run, sae, found), metrics.latents(sums)


def evaluate_folder(
  folder: pathlib.Path, run: config_lib.RunConfig, inputs: inputs_lib.Inputs
) -> dict[str, object]:
  """Returns the row of one SAE; see `evaluate_folders`."""
  ((_, row, _),) = evaluate_folders([(folder, run)], inputs)
  return row


def _evaluated_together(folders):
  """Returns lists of folders whose SAEs fit on the device together."""
  paths = [folder / export.FILE_NAME for folder, _ in folders]
  sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
  return _split(folders, sizes, _EVALUATED_BYTES)


def _load_sae(folder, inputs):
  """Returns the SAE of a folder; InputError if it is not for the site."""
  sae = export.load_npz(folder / export.FILE_NAME)
  expected = inputs.architecture.site_dim(inputs.where.name)
  d_model = len(sae.W_enc)
  if d_model != expected:
    raise errors.InputError(
      f'{folder}: the SAE is for activations of size {d_model}, but '
      f'{inputs.where} of {inputs.lm_folder} has size {expected}.'
    )
  return sae


def _row(folder, run, sae, found):
  """Returns what results.csv says of an SAE."""
  d_model, num_latents = sae.W_enc.shape
  has_k = architectures.of(run).sparsity == architectures.K
  curve = writer.read_curve(folder)
  return {
    'architecture': run.sae.architecture,
    'objective': run.objective.name,
    'sparsity_coeff': None if has_k else run.objective.sparsity_coeff,
    'k': run.sae.k if has_k else None,
    'seed': run.seed,
    'model': inputs_lib.model_name(run),
    'site': _site_name(run),
    'layer': run.lm.layer,
    'd_model': d_model,
    'num_latents': num_latents,
    'tokens': run.train.steps * run.train.batch_size,
    'steps': run.train.steps,
    **{k: None if math.isnan(v) else v for k, v in found.items()},
    'l0_settled': loop.l0_is_settled(curve, run.train.steps),
  }


def _site_name(run):
  """Returns the name of a run's site, with a transcoder's target."""
  if not run.lm.target_site:
    return run.lm.site
  layer = '' if run.lm.target_layer < 0 else f'/{run.lm.target_layer}'
  return f'{run.lm.site}->{run.lm.target_site}{layer}'


def load_run(folder: str | os.PathLike) -> config_lib.RunConfig:
  """Reads the config of a run's or an SAE's folder.

  Raises:
    errors.InputError: there is none, or it is not a config.
  """
  path = pathlib.Path(folder) / 'config.json'
  if seals.is_sealed(folder, path.name):
    _has(pathlib.Path(folder), path.name)
  if not path.is_file():
    raise errors.InputError(
      f'{path} does not exist; give a folder that a run has written.'
    )
  return config_lib.RunConfig.from_config_dict(_read_json(path))


def _train_all(pending, inputs, workdir):
  """Trains the SAEs that are not there.

  A function of its own: what live shards hold of the language model is let go
  before evaluation loads the whole.
  """
  shards = open_shards(inputs, workdir)
  for group in _trained_together(pending, inputs):
    _train(group, inputs, shards)


def _trained_together(pending, inputs):
  """Yields lists of (folder, run) whose states fit on the mesh together."""
  limit = _TRAINED_BYTES * inputs.mesh.devices.size
  streams = {}
  for folder, run in pending:
    streams.setdefault(loop.stream_of(run), []).append((folder, run))
  for alike in streams.values():
    sizes = [train.num_bytes(run, inputs.widths) for _, run in alike]
    yield from _split(alike, sizes, limit)


def _split(items, sizes, limit):
  """Yields items in lists whose sizes add up to the limit at most."""
  group, total = [], 0
  for item, size in zip(items, sizes, strict=True):
    if group and total + size > limit:
      yield group
      group, total = [], 0
    group.append(item)
    total += size
  if group:
    yield group


def _open_store(inputs, site, folder):
  """Returns the store of a site; InputError if it is of something else."""
  store = store_lib.Store(folder)
  store.check_is_of(inputs.describe(site, store.description.num_sequences))
  return store


def _train(group, inputs, shards):
  """Trains SAEs together and writes them folded, each one's file last."""
  folders, runs = zip(*group, strict=True)
  for folder, run in group if hosts_lib.is_first() else ():
    folder.mkdir(exist_ok=True)
    whole.write_json(folder / 'config.json', run.to_dict())
  states = loop.fit_together(runs, shards, inputs.mesh, folders)
  for (folder, run), state in zip(group, states, strict=True):
    state = hosts_lib.fetch(state)
    if hosts_lib.is_first():
      sae = train.release(run, state, shards.scales)
      export.save_npz(sae, folder / export.FILE_NAME)
      seals.write(folder, _ABOUT, _TRAINED)


def _check_same_config(path, run):
  """Raises InputError, with the differences, unless a folder is the run's."""
  theirs = identity.of_raw(_read_json(path))
  if differing := identity.differences(theirs, identity.of(run)):
    raise errors.InputError(
      f'{path.parent} holds a run with another config ({differing}); give '
      'another --workdir.'
    )


def _read_json(path):
  """Returns the object that a file holds; InputError if it holds none."""
  try:
    raw = json.loads(path.read_bytes())
  except ValueError as error:
    raise errors.InputError(
      f'{path} is damaged: it is not JSON ({error}). If it is a run of yours, '
      'restore this file; else give another --workdir.'
    ) from error
  if not isinstance(raw, dict):
    raise errors.InputError(
      f'{path} holds a {type(raw).__name__}, expected the keys of a config; '
      'give another --workdir.'
    )
  return raw
