"""A run's folder, and the way from a config to a table of results.

  DIR/config.json          the resolved config; a folder belongs to one config
  DIR/inputs.json          checksums of the model and of the held-out tokens
  DIR/activations/         sequences.npy and a store for each site
  DIR/heldout.npy          packed text that SAEs are evaluated on
  DIR/<name of an SAE>/    config.json, params.npz (folded), latents.npz (how
                           often each latent fires), evaluation.json (all
                           metrics), metrics.jsonl, norm_limits.json (of runs
                           with a norm filter), seal.json (checksums of these),
                           tensorboard/, checkpoints/
  DIR/results.csv          one row for each SAE
  DIR/pareto.png, .pdf     for sweeps

Each stage seals what it has written and is skipped when that is under the seal,
so a run that was killed is continued by the same command.
"""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib

import numpy as np

from jumprelu_jax import config as config_lib
from jumprelu_jax import corpus
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import hosts as hosts_lib
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import loop
from jumprelu_jax import needs
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import sae_folders
from jumprelu_jax import seals
from jumprelu_jax import supply
from jumprelu_jax import train
from jumprelu_jax import whole
from jumprelu_jax.text import sequences

_EVALUATION = 'evaluation.json'
#: Of a run's folder: the text that its SAEs are evaluated on.
HELDOUT = 'heldout.npy'
# What of an SAE's folder is sealed when it is trained.
_TRAINED = ('config.json', export.FILE_NAME, 'metrics.jsonl')
_ABOUT = 'an SAE'
# Of states of training, for each device, that are trained on one stream.
_TRAINED_BYTES = 2**32
# Said from this share of held-out text, and from as many visits of a row, on.
_OVERLAP = 0.05
_REPEATS = 2


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
    first, which evaluates alone and is the one to show them.

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
      run_folder.check_same_config(folder / 'config.json', run)

  if hosts_lib.is_first():
    run_folder.check_unchanged(workdir, {'model': inputs.model_digests})

  def without(name):
    return [(f, run) for f, run in runs.items() if not run_folder.has(f, name)]

  def lacking_sae():
    to_train = without(export.FILE_NAME)
    pending = {folder.name: run for folder, run in to_train}
    if pending:
      needs.check_run(inputs, workdir, pending)
    return list(pending)

  # All train the same, whatever each of them sees of a shared folder by now.
  if names := hosts_lib.from_first('to train', lacking_sae):
    _train_all([(workdir / n, named[n]) for n in names], inputs, workdir)
  if not hosts_lib.is_first():
    return []
  to_evaluate, here = without(_EVALUATION), inputs.on_this_host()
  if to_evaluate:
    here = here.keep_heldout(workdir / HELDOUT)
    _say_overlap(here, workdir)
    run_folder.check_unchanged(
      workdir, {'held-out tokens': here.heldout_digest}
    )
  for folder, row, latents in sae_folders.evaluate(to_evaluate, here):
    with whole.replacing(folder / 'latents.npz') as file:
      np.savez(file, **latents)
    whole.write_json(folder / _EVALUATION, row)
    _seal(folder, 'latents.npz', _EVALUATION)
  rows = [_read_row(folder / _EVALUATION) for folder in runs]
  results.write(rows, workdir / 'results.csv')
  return rows


def _say_overlap(inputs, workdir):
  """Says so if the held-out text is text that was trained on."""
  path = supply.find_sequences(inputs, workdir)
  if path is None:
    return  # a store that was moved without its text
  share = corpus.overlap(
    inputs.heldout_NL, sequences.open(path), inputs.architecture.special_ids
  )
  if share >= _OVERLAP:
    progress.say(
      f'held-out text: about {share:.0%} of its sequences are in the training '
      'text, so the metrics are not those of unseen text'
    )


def _say_repeats(runs, shards):
  """Says so if rows are trained on many times."""
  rows = sum(shards.rows_per_shard)
  trained = max(run.train.steps * run.train.batch_size for run in runs)
  if trained > _REPEATS * rows:
    progress.say(
      f'training: each of {rows:,} rows is seen about {trained / rows:,.0f} '
      'times; more config.activations.sequences give more of them'
    )


def _read_row(path):
  row = run_folder.read_json(path)
  if lacking := [name for name in results.COLUMNS if name not in row]:
    raise errors.InputError(
      f'{path} lacks {", ".join(lacking)}; remove it and give the same command '
      'again: the SAE is evaluated anew.'
    )
  return row


def _train_all(pending, inputs, workdir):
  """Trains the SAEs that are not there.

  A function of its own: what live shards hold of the language model is let go
  before evaluation loads the whole.
  """
  shards = supply.open_shards(inputs, workdir)
  if hosts_lib.is_first():
    _say_repeats([run for _, run in pending], shards)
  for group in _trained_together(pending, inputs):
    _train(group, inputs, shards, workdir)


def _trained_together(pending, inputs):
  """Yields lists of (folder, run) whose states fit on the mesh together."""
  limit = _TRAINED_BYTES * inputs.mesh.devices.size
  streams = {}
  for folder, run in pending:
    streams.setdefault(loop.stream_of(run), []).append((folder, run))
  for alike in streams.values():
    sizes = [train.num_bytes(run, inputs.widths) for _, run in alike]
    yield from needs.in_lists(alike, sizes, limit)


def _train(group, inputs, shards, workdir):
  """Trains SAEs together and writes them folded, each one's file last."""
  folders, runs = zip(*group, strict=True)
  for folder, run in group if hosts_lib.is_first() else ():
    whole.make_folder(folder)
    whole.write_json(folder / 'config.json', run.to_dict())
  states = loop.fit_together(runs, shards, inputs.mesh, folders)
  for (folder, run), state in zip(group, states, strict=True):
    state = hosts_lib.fetch(state)
    if hosts_lib.is_first():
      sae = train.release(run, state, shards.scales)
      export.save_npz(sae, folder / export.FILE_NAME)
      run_folder.write_limits(folder, supply.norm_limits(inputs, workdir))
      _seal(folder)


def _seal(folder, *names):
  """Seals what training has written, and more."""
  limits = (run_folder.LIMITS,) if (folder / run_folder.LIMITS).exists() else ()
  seals.write(folder, _ABOUT, (*_TRAINED, *limits, *names))
