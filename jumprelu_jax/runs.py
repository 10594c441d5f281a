"""A run's folder, and the way from a config to a table of results.

  DIR/config.json          the resolved config; a folder belongs to one config
  DIR/activations/         the store (see `activations`)
  DIR/<name of an SAE>/    config.json, params.npz (folded), evaluation.json,
                           metrics.jsonl, tensorboard/, checkpoints/
  DIR/results.csv          one row for each SAE
  DIR/pareto.png, .pdf     for sweeps

Each stage writes its last file last and is skipped when that file is there, so
a run that was killed is continued by the same command.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import pathlib

import jax
import numpy as np
import tokenizers

from jumprelu_jax import activations
from jumprelu_jax import config as config_lib
from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import export
from jumprelu_jax import results
from jumprelu_jax import sharding
from jumprelu_jax import text
from jumprelu_jax import train
from jumprelu_jax import writer
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import sites

# Where a run continues may change; what it computes may not.
_MAY_DIFFER = ('mesh.data', 'mesh.latent')


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A run's inputs, checked; the heavy parts are read when first used.

  Attributes:
    run: the config.
    lm_folder: the language model's folder.
    lm_config: its config.
    tokenizer: its tokenizer.
    where: the site.
    mesh: the device mesh.
  """

  run: config_lib.RunConfig
  lm_folder: pathlib.Path
  lm_config: gemma2.Gemma2Config
  tokenizer: tokenizers.Tokenizer
  where: sites.Site
  mesh: jax.sharding.Mesh

  @property
  def special_ids(self) -> tuple[int, ...]:
    """Ids of BOS, EOS and PAD."""
    return lm_loss.special_ids(self.lm_config)

  @functools.cached_property
  def model(self) -> gemma2.Gemma2:
    """The language model, float32."""
    return huggingface.load(self.lm_folder)

  @functools.cached_property
  def heldout_NL(self) -> np.ndarray:
    """Packed text to evaluate on."""
    return self._pack(
      _heldout_path(self.run.text), self.run.evaluation.sequences
    )

  @functools.cached_property
  def harvest_NL(self) -> np.ndarray:
    """Packed text to harvest from."""
    return self._pack(
      _harvest_path(self.run.text), self.run.activations.sequences
    )

  @functools.cached_property
  def baseline(self) -> evaluation.Baseline:
    """The language model measured without any SAE."""
    rows = self.run.evaluation.sequences_per_batch
    return evaluation.measure_baseline(
      self.model, self.heldout_NL, self.where, rows
    )

  def _pack(self, path, max_rows):
    return text.pack(
      text.encode(text.read_documents(path), self.tokenizer),
      self.run.text.context_length,
      bos_id=self.lm_config.bos_token_id,
      pad_id=self.lm_config.pad_token_id,
      max_rows=max_rows or None,
    )


def prepare(run: config_lib.RunConfig) -> Inputs:
  """Checks a config against the model, the texts and the machine.

  Raises:
    errors.InputError: something does not fit; nothing has been written.
  """
  train.check_names(run)
  mesh = sharding.make_mesh(run.mesh.data, run.mesh.latent)
  where = sites.Site(run.lm.site, run.lm.layer)
  folder = pathlib.Path(
    embedded.LM if run.lm.path == config_lib.EMBEDDED else run.lm.path
  )
  lm_config = huggingface.load_config(folder)
  if where.layer >= lm_config.num_hidden_layers:
    raise errors.InputError(
      f'config.lm.layer={where.layer} is not a layer of {folder}; it has '
      f'layers 0 to {lm_config.num_hidden_layers - 1}.'
    )
  if run.text.context_length > lm_config.max_position_embeddings:
    raise errors.InputError(
      f'config.text.context_length={run.text.context_length} is longer than '
      f'the {lm_config.max_position_embeddings} positions of {folder}.'
    )
  rows = run.activations.sequences * (run.text.context_length - 1)
  if 0 < rows < run.train.batch_size:
    raise errors.InputError(
      f'config.activations.sequences={run.activations.sequences} gives {rows} '
      f'rows at most, less than config.train.batch_size='
      f'{run.train.batch_size}; harvest from more sequences.'
    )
  huggingface.check_weights(folder, lm_config)
  tokenizer = huggingface.load_tokenizer(folder)
  for path in (_harvest_path(run.text), _heldout_path(run.text)):
    next(text.read_documents(path))  # raises if there is none
  return Inputs(run, folder, lm_config, tokenizer, where, mesh)


def claim(workdir: str | os.PathLike, run: config_lib.RunConfig) -> None:
  """Makes a folder the run's own, or checks that it already is.

  Raises:
    errors.InputError: the folder holds a run with another config, or something
      else; it is left as it is.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / 'config.json'
  if path.exists():
    _check_same_config(path, run)
    return
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise errors.InputError(
      f'--workdir={workdir} exists and holds no run; give an empty or a new '
      'folder.'
    )
  workdir.mkdir(parents=True, exist_ok=True)
  _write_json(path, run.to_dict())


def run_all(
  inputs: Inputs, coeffs: Sequence[float], workdir: str | os.PathLike
) -> list[dict[str, object]]:
  """Harvests, trains and evaluates an SAE for each coefficient.

  Args:
    inputs: from `prepare`.
    coeffs: sparsity coefficients.
    workdir: a folder that `claim` has accepted.

  Returns:
    The rows of results.csv, which is written.
  """
  workdir = pathlib.Path(workdir)
  store = harvested(inputs, workdir / 'activations')
  runs = [
    inputs.run.with_values({'objective.sparsity_coeff': coeff})
    for coeff in coeffs
  ]
  folders = [workdir / sae_folder_name(run) for run in runs]
  for run, folder in zip(runs, folders, strict=True):
    if not (folder / export.FILE_NAME).exists():
      _train(run, inputs, store, folder)
  rows = []
  for run, folder in zip(runs, folders, strict=True):
    path = folder / 'evaluation.json'
    if not path.exists():
      _write_json(path, evaluate_folder(folder, run, inputs))
    rows.append(json.loads(path.read_text()))
  results.write(rows, workdir / 'results.csv')
  return rows


def sae_folder_name(run: config_lib.RunConfig) -> str:
  """Returns the name of an SAE's folder inside a run's."""
  return (
    f'{run.sae.architecture}_{run.objective.name}_'
    f'{run.objective.sparsity_coeff:g}'
  )


def harvested(inputs: Inputs, folder: pathlib.Path) -> activations.Store:
  """Returns the run's store of activations, harvested if it is not there."""
  run = inputs.run
  if not activations.is_complete(folder):

    @jax.jit
    def tap(model, tokens_BL):
      return gemma2.tap(model, tokens_BL, inputs.where)

    activations.harvest(
      functools.partial(tap, inputs.model),
      inputs.harvest_NL,
      folder,
      special_ids=inputs.special_ids,
      sequences_per_batch=run.activations.sequences_per_batch,
      bucket_rows=run.activations.bucket_rows,
      seed=run.seed,
      source={
        'model': _model_name(run),
        'site': run.lm.site,
        'layer': run.lm.layer,
        'seed': run.seed,
      },
    )
  return activations.Store(folder)


def evaluate_folder(
  folder: pathlib.Path, run: config_lib.RunConfig, inputs: Inputs
) -> dict[str, object]:
  """Returns an SAE's row of results.csv, evaluated on the held-out text.

  Raises:
    errors.InputError: the folder's SAE is damaged or not for the model's site.
  """
  sae = export.load_npz(folder / export.FILE_NAME)
  d_model, num_latents = sae.W_enc.shape
  expected = inputs.lm_config.site_dim(run.lm.site)
  if d_model != expected:
    raise errors.InputError(
      f'{folder}: the SAE is for activations of size {d_model}, but '
      f'{inputs.where} of {inputs.lm_folder} has size {expected}.'
    )
  metrics = evaluation.evaluate(
    sae,
    inputs.model,
    inputs.heldout_NL,
    inputs.where,
    run.evaluation.sequences_per_batch,
    inputs.baseline,
  )
  return {
    'architecture': run.sae.architecture,
    'objective': run.objective.name,
    'sparsity_coeff': run.objective.sparsity_coeff,
    'k': None,
    'seed': run.seed,
    'model': _model_name(run),
    'site': run.lm.site,
    'layer': run.lm.layer,
    'd_model': d_model,
    'num_latents': num_latents,
    'tokens': run.train.steps * run.train.batch_size,
    'steps': run.train.steps,
    **metrics,
    'l0_settled': train.l0_is_settled(
      writer.read_curve(folder), run.train.steps
    ),
  }


def load_run(folder: str | os.PathLike) -> config_lib.RunConfig:
  """Reads the config of a run's or an SAE's folder.

  Raises:
    errors.InputError: there is none, or it is not a config.
  """
  path = pathlib.Path(folder) / 'config.json'
  if not path.is_file():
    raise errors.InputError(
      f'{path} does not exist; give a folder that a run has written.'
    )
  try:
    raw = json.loads(path.read_text())
  except ValueError as error:
    raise errors.InputError(f'{path} is not JSON ({error}).') from error
  return config_lib.RunConfig.from_config_dict(raw)


def _train(run, inputs, store, folder):
  """Trains one SAE and writes it folded; the SAE is the last file written."""
  folder.mkdir(exist_ok=True)
  _write_json(folder / 'config.json', run.to_dict())
  batches = activations.Batches(store, run.train.batch_size, run.seed)
  sae = train.fit(run, batches, store.manifest.d_model, inputs.mesh, folder)
  sae = jax.device_get(sae)
  export.save_npz(sae.fold(store.scale), folder / export.FILE_NAME)


def _check_same_config(path, run):
  """Raises InputError, with the differences, unless a folder is the run's."""
  try:
    theirs = config_lib.flatten(json.loads(path.read_text()))
  except ValueError as error:
    raise errors.InputError(
      f'{path} is not JSON ({error}); give another --workdir.'
    ) from error
  ours = config_lib.flatten(run.to_dict())
  differences = [
    f'{key}: {theirs.get(key)!r} there, {ours.get(key)!r} now'
    for key in sorted(theirs.keys() | ours.keys())
    if theirs.get(key) != ours.get(key) and key not in _MAY_DIFFER
  ]
  if differences:
    raise errors.InputError(
      f'--workdir={path.parent} holds a run with another config '
      f'({"; ".join(differences)}); give another --workdir.'
    )


def _harvest_path(config):
  is_embedded = config.harvest == config_lib.EMBEDDED
  return embedded.HARVEST_TEXT if is_embedded else config.harvest


def _heldout_path(config):
  is_embedded = config.heldout == config_lib.EMBEDDED
  return embedded.HELDOUT_TEXT if is_embedded else config.heldout


def _model_name(run):
  return pathlib.Path(run.lm.path).name


def _write_json(path, value):
  """Writes JSON beside its place and renames it: whole or not at all."""
  aside = path.with_suffix('.partial')
  aside.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(aside, path)
