"""The stages of a preset, each resumable; `__main__` calls them in order."""

from __future__ import annotations

import functools
import pathlib
import re

from experiments.reproduce import ablations
from experiments.reproduce import tuning
from jumprelu_jax import architectures
from jumprelu_jax import comparison
from jumprelu_jax import finished
from jumprelu_jax import inputs as inputs_lib
from jumprelu_jax import progress
from jumprelu_jax import results
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import supply
from jumprelu_jax.plot import catalogue

_TUNING_COLUMNS = ('round', 'tried', 'best', *results.COLUMNS)
_ABLATION_COLUMNS = ('variant', *results.COLUMNS)


def run(preset, workdir, out):
  """Runs a preset: from nothing, or from where it was killed.

  Args:
    preset: a `presets.Preset`.
    workdir: keeps stores and run folders.
    out: gets tuning.csv, yardstick.csv, ablations.csv and, of SAEs whose L0 is
      set by k or the controller, grid.csv, comparison.csv and figures/; the
      same of SAEs with a constant lambda, or k, in constant_lambda/.
  """
  workdir, out = pathlib.Path(workdir), pathlib.Path(out)
  for folder in (workdir, out):
    folder.mkdir(parents=True, exist_ok=True)
  stores = harvest(preset, workdir)
  best, tried = tune(preset, stores[min(preset.places)], workdir)
  results.write(tried, out / 'tuning.csv', _TUNING_COLUMNS)
  if preset.yardstick:
    measured = measure(preset, workdir)
    results.write(measured, out / 'yardstick.csv', _ABLATION_COLUMNS)
  constant, controlled = train_grid(preset, best, stores, workdir)
  rows = finished.read(constant)
  has_k = [row for row in rows if row['k'] is not None]
  report(preset, finished.read(controlled) + has_k, out)
  if len(has_k) < len(rows):
    report(preset, rows, out / 'constant_lambda')
  ablated = ablate(preset, best, stores, workdir)
  if ablated:
    results.write(ablated, out / 'ablations.csv', _ABLATION_COLUMNS)


def harvest(preset, workdir):
  """Harvests all places of each seed; returns the stores' folders by seed."""
  folders = {}
  for seed, places in preset.places.items():
    wanted = dict.fromkeys((*places, preset.tuned_at))
    run = preset.run().with_values(
      {
        'seed': seed,
        'lm.site': places[0].name,
        'lm.layer': places[0].layer,
        'activations.sites': tuple(f'{s.name}/{s.layer}' for s in wanted),
      }
    )
    folder = workdir / f'activations_{seed}'
    supply.harvest(inputs_lib.prepare(run), str(folder))
    folders[seed] = str(folder)
  return folders


def run_at(preset, place, seed, store):
  """Returns the config of all SAEs of a place and seed."""
  return preset.run().with_values(
    {
      'seed': seed,
      'lm.site': place.name,
      'lm.layer': place.layer,
      'activations.store': store,
    }
  )


def train(inputs, folder, named):
  """Trains and evaluates SAEs by name, in a folder of their own."""
  with run_folder.claimed(folder, inputs.run):
    return runs.run_all(inputs, named, folder)


def tune(preset, store, workdir):
  """Returns each kind's best values, and a table of all that was tried."""
  run = run_at(preset, preset.tuned_at, min(preset.places), store)
  inputs = inputs_lib.prepare(run)
  in_folder = functools.partial(train, inputs, workdir / 'tuning')
  best, table = tuning.tune(preset, run, in_folder)
  for name, values in best.items():
    progress.say(f'{name}: {tuning.describe(values)}')
  return best, table


def measure(preset, workdir):
  """Trains the reference in the yardstick's setting; returns its rows."""
  run = run_at(preset, preset.tuned_at, min(preset.places), '')
  run = run.with_values(preset.yardstick)
  store = str(workdir / 'yardstick_activations')
  supply.harvest(inputs_lib.prepare(run), store)
  run = run.with_values({'activations.store': store})
  kind = preset.kinds[0]
  named = {
    f'sparsity={sparsity:g}': kind.config(run, kind.at(sparsity))
    for sparsity in preset.yardstick_sparsities
  }
  rows = train(inputs_lib.prepare(run), workdir / 'yardstick', named)
  return [
    row | {'variant': name} for name, row in zip(named, rows, strict=True)
  ]


def train_grid(preset, best, stores, workdir):
  """Trains every kind at every sparsity, place and seed.

  Returns:
    The run folders of SAEs with a constant lambda or k, and of those that the
    controller leads to an L0.
  """
  constant, controlled = [], []
  for seed, places in preset.places.items():
    for place in places:
      run = run_at(preset, place, seed, stores[seed])
      fixed = [
        kind.config(run, {**best[kind.name], **kind.at(sparsity)})
        for kind in preset.kinds
        for sparsity in kind.sparsities
      ]
      led = [
        kind.config(run, {**best[kind.name], **tuning.at_l0(kind, l0)})
        for kind in preset.kinds
        for l0 in preset.l0s
        if kind.is_compared and not kind.has_k
      ]
      name = f'{place.name}_{place.layer}_seed_{seed}'
      inputs = inputs_lib.prepare(run)  # and their baseline, once for both
      for configs, folder, folders in (
        (fixed, workdir / name, constant),
        (led, workdir / f'{name}_controlled', controlled),
      ):
        named = {architectures.name(one): one for one in configs}
        train(inputs, folder, named)
        folders.append(folder)
  return constant, controlled


def ablate(preset, best, stores, workdir):
  """Trains the ablations on each of their seeds; returns a table."""
  table = []
  for seed in preset.ablated_seeds:
    run = run_at(preset, preset.tuned_at, seed, stores[seed])
    named = ablations.variants(preset, run, best[preset.kinds[0].name])
    folders = {re.sub(r'\W+', '_', name): one for name, one in named.items()}
    folder = workdir / f'ablations_seed_{seed}'
    rows = train(inputs_lib.prepare(run), folder, folders)
    table += [
      {'variant': variant, **row}
      for variant, row in zip(named, rows, strict=True)
    ]
  return table


def report(preset, rows, out):
  """Writes the SAEs' table, their comparison and all figures."""
  out.mkdir(exist_ok=True)
  results.write(rows, out / 'grid.csv')
  reference = preset.kinds[0].architecture, preset.kinds[0].objective
  comparison.save(rows, reference, out / 'comparison.csv')
  catalogue.save(catalogue.of_runs(rows), out / 'figures')
