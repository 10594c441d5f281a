"""SAEs' folders, evaluated: the rows of results.csv."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import pathlib

import numpy as np

from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import evaluation
from jumprelu_jax import export
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import loop
from jumprelu_jax import metrics
from jumprelu_jax import needs
from jumprelu_jax import run_folder
from jumprelu_jax import writer
from jumprelu_jax.exchange import own

# Of parameters that are evaluated in one pass over the text.
_TOGETHER_BYTES = 2**31


def evaluate(
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
    errors.NotFiniteError: of an SAE, once the others have been yielded.
  """
  broken = []
  for folder, run, sae, sums, baseline in _measure(folders, inputs):
    try:
      found = metrics.finish(sums, baseline)
    except errors.NotFiniteError as error:
      broken.append(f'{folder}: {error}')
      continue
    yield folder, _row(folder, run, sae, found), metrics.latents(sums)
  if broken:
    raise errors.NotFiniteError(' '.join(broken))


def _measure(folders, inputs):
  """Yields (folder, run, SAE, sums, baseline); equal limits share a pass."""
  by_limits = {}
  for folder, run in folders:
    limits = run_folder.read_limits(folder, run)
    by_limits.setdefault(limits, []).append((folder, run))
  for limits, alike in by_limits.items():
    if limits:
      setting = dataclasses.replace(inputs.setting, limits=limits)
      baseline = evaluation.measure_baseline(setting)
    else:
      setting, baseline = inputs.setting, inputs.baseline
    for group in _together(alike):
      saes = [_load_sae(folder, inputs) for folder, _ in group]
      measured = evaluation.measure(saes, setting, baseline)
      for (folder, run), sae, sums in zip(group, saes, measured, strict=True):
        yield folder, run, sae, sums, baseline


def _together(folders):
  """Returns lists of folders whose SAEs fit on the device together."""
  paths = [folder / export.FILE_NAME for folder, _ in folders]
  sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
  return needs.in_lists(folders, sizes, _TOGETHER_BYTES)


def _load_sae(folder, inputs):
  """Returns the SAE of a folder; InputError if it is not for the site."""
  sae, _ = own.read(folder)
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
