"""The reproduction's stages on a tiny model."""

import csv
import itertools
import json
import math

import pytest

from experiments.reproduce import ablations
from experiments.reproduce import presets
from experiments.reproduce import report
from experiments.reproduce import stages
from experiments.reproduce import tuning
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax import loop
from jumprelu_jax import train
from jumprelu_jax.lm import sites

pytestmark = pytest.mark.slow  # whole commands
JUMPRELU = presets.Kind(
  'jumprelu', 'l0', (1e-1, 1e-3), own=({'objective.bandwidth': 0.05},)
)
TOPK = presets.Kind(
  'topk', 'aux_k', (2, 4), own=({'objective.aux_k_coeff': 0.5},)
)
ALL_VARIANTS = ablations.variants
PLACES = (sites.Site('resid_post', 0), sites.Site('mlp_out', 1))


@pytest.fixture(scope='module')
def preset(tiny_run):
  """Two kinds, two sparsities, two places, two seeds."""
  recipe = tiny_run.to_dict()
  return presets.Preset(
    recipe=lambda: config_lib_dict(recipe),
    values={'sae.k': 2, 'objective.aux_k': 4, 'train.steps': 40},
    kinds=(JUMPRELU, TOPK),
    places={0: PLACES, 1: PLACES[:1]},
    l0s=(2, 4),
    tuned_at=PLACES[0],
    tuned_l0=2,
    rates=(1e-3, 1e-2),
    betas=({'optimizer.beta1': 0.9},),
    ablated_seeds=(1,),
    yardstick={'train.batch_size': 32},
    yardstick_sparsities=(1e-2, 2e-2),
  )


def config_lib_dict(values):
  """Stands in for a ConfigDict."""

  class Recipe:
    def to_dict(self):
      return values

  return Recipe()


@pytest.fixture(scope='module')
def few_ablations():
  """Two of them: each is a program to compile."""

  def few(*args):
    return dict(itertools.islice(ALL_VARIANTS(*args).items(), 2))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stages.ablations, 'variants', few)
    yield


@pytest.fixture(scope='module')
def finished(preset, few_ablations, tmp_path_factory):
  """(workdir, out) of the preset, run to its end."""
  folder = tmp_path_factory.mktemp('reproduce')
  stages.run(preset, folder / 'work', folder / 'out')
  return folder / 'work', folder / 'out'


def table(path):
  with path.open() as file:
    return list(csv.DictReader(file))


def test_every_sae_of_the_preset_is_in_a_table(finished):
  _, out = finished
  for folder in (out, out / 'constant_lambda'):
    grid = table(folder / 'grid.csv')
    # (two places with seed 0 and one with seed 1) x two kinds x two sparsities
    assert len(grid) == 3 * 2 * 2
    assert len({tuple(row.values()) for row in grid}) == 12
    assert (folder / 'comparison.csv').is_file()
    assert (folder / 'figures' / 'fvu.png').is_file()
    coeffs = {row['sparsity_coeff'] for row in grid}
    constant = {'0.1', '0.001', ''}  # TopK has none
    assert coeffs == (constant if folder != out else {'0.008', '0.004', ''})
  # two rates, one beta and one of its own, for each kind
  tried = table(out / 'tuning.csv')
  assert [row['architecture'] for row in tried] == (
    ['jumprelu'] * 2 + ['topk'] * 2 + ['jumprelu', 'topk'] * 2
  )
  assert {row['seed'] for row in table(out / 'ablations.csv')} == {'1'}


def test_the_grid_is_trained_with_what_the_tuning_chose(finished):
  work, out = finished
  best = {}
  for row in table(out / 'tuning.csv'):
    if row['best'] == 'True':
      best[row['architecture']] = row['tried']
  for name in ('resid_post_0_seed_1', 'mlp_out_1_seed_0'):
    for path in (work / name).glob('*/config.json'):
      config = json.loads(path.read_text())
      words = dict(
        word.split('=') for word in best[config['sae']['architecture']].split()
      )
      rate = f'{config["optimizer"]["learning_rate"]:.4g}'
      assert rate == words['learning_rate']


def test_the_yardstick_is_the_recipe_in_its_setting(finished, preset):
  work, out = finished
  rows = table(out / 'yardstick.csv')
  assert [row['variant'] for row in rows] == ['sparsity=0.01', 'sparsity=0.02']
  assert [row['sparsity_coeff'] for row in rows] == ['0.01', '0.02']
  for row in rows:
    path = work / 'yardstick' / row['variant'] / 'config.json'
    config = json.loads(path.read_text())
    assert config['sae']['architecture'] == 'jumprelu'
    assert config['train']['batch_size'] == 32  # the setting's
    assert config['optimizer'] == preset.run().to_dict()['optimizer']
    assert not config['objective']['components']


def test_finished_work_is_not_done_again(
  finished, preset, tmp_path, monkeypatch
):
  work, out = finished

  def fail(*args):
    raise AssertionError('this was finished')

  monkeypatch.setattr(loop, 'fit_together', fail)
  stages.run(preset, work, tmp_path / 'again')
  for name in ('tuning.csv', 'grid.csv', 'comparison.csv', 'ablations.csv'):
    assert (tmp_path / 'again' / name).read_text() == (out / name).read_text()


def test_an_sae_with_another_recipe_is_refused(finished, preset):
  work, _ = finished
  folder = work / 'resid_post_0_seed_0'
  run = config_lib.RunConfig.from_config_dict(
    json.loads((folder / 'config.json').read_text())
  )
  other = TOPK.config(run, {**TOPK.at(2), presets.RATE: 0.5})
  with pytest.raises(errors.InputError, match=r'learning_rate: .* 0\.5 now'):
    stages.train(inputs.prepare(run), folder, {'topk_aux_k_2': other})


def test_tuning_takes_the_least_fvu_at_the_l0(make_run, preset):
  """The best rate is 1e-2; beta1 helps; what is its own misses the L0."""

  def train(named):
    return [
      {
        'architecture': run.sae.architecture,
        'l0': 3.0 if run.objective.bandwidth == 0.05 else 2.05,
        'fvu': abs(math.log(run.optimizer.learning_rate / 1e-2))
        - 0.1 * run.optimizer.beta1
        - run.objective.bandwidth
        - run.objective.aux_k_coeff,
      }
      for run in named.values()
    ]

  best, rows = tuning.tune(preset, make_run(), train)
  common = {**tuning.at_rate(1e-2), 'optimizer.beta1': 0.9}
  assert best == {
    'jumprelu/l0': common,
    'topk/aux_k': common | {'objective.aux_k_coeff': 0.5},
  }
  assert [(row['round'], row['architecture'], row['best']) for row in rows] == [
    (0, 'jumprelu', False),
    (0, 'jumprelu', True),
    (0, 'topk', False),
    (0, 'topk', True),
    (1, 'jumprelu', True),
    (1, 'topk', True),
    (2, 'jumprelu', False),
    (2, 'topk', True),
  ]
  assert rows[-1]['tried'] == (
    'learning_rate=0.01 threshold_learning_rate=0.02857 beta1=0.9 '
    'aux_k_coeff=0.5'
  )


@pytest.mark.parametrize('name', presets.PRESETS)
def test_every_config_of_the_presets_can_be_trained(name):
  preset = presets.PRESETS[name]
  run = preset.run()
  for kind in preset.kinds:
    for sparsity in kind.sparsities or (1.0,):
      train.check(kind.config(run, kind.at(sparsity)))
    for values in itertools.chain(*tuning.rounds(preset, kind)):
      train.check(kind.config(run, values))
  for seed in preset.ablated_seeds:
    assert seed in preset.places
    for config in ALL_VARIANTS(preset, run, {}).values():
      train.check(config)
  if preset.yardstick:
    kind, base = preset.kinds[0], run.with_values(preset.yardstick)
    for sparsity in preset.yardstick_sparsities:
      train.check(kind.config(base, kind.at(sparsity)))
  # A comparison is fair if all were searched alike.
  rounds = [tuning.rounds(preset, kind) for kind in preset.kinds]
  assert len({tuple(map(len, of_kind)) for of_kind in rounds}) == 1


def test_ablated_batches_keep_tokens_and_schedule(make_run, preset):
  run = make_run(
    train__batch_size=512,
    train__steps=2000,
    objective__sparsity_warmup_steps=400,
    optimizer__warmup_steps=50,
    optimizer__learning_rate=4e-3,
  )
  found = ALL_VARIANTS(preset, run, {})
  small = found['batch: 0.25 times, rates by root']
  assert (small.train.batch_size, small.train.steps) == (128, 8000)
  assert small.objective.sparsity_warmup_steps == 1600
  assert small.optimizer.warmup_steps == 200
  assert small.optimizer.learning_rate == pytest.approx(2e-3)
  assert found['batch: 0.25 times, same rates'].optimizer.learning_rate == 4e-3
  large = found['batch: 4 times, rates by root']
  assert (large.train.steps, large.objective.sparsity_warmup_steps) == (
    500,
    100,
  )
  assert large.optimizer.learning_rate == pytest.approx(8e-3)


def test_only_tables_are_replaced(finished, tmp_path):
  (tmp_path / 'embedded').mkdir()
  path = tmp_path / 'embedded' / 'tuning.csv'
  path.write_text((finished[1] / 'tuning.csv').read_text())
  page = 'Before.\n<!-- table embedded_tuning -->\nOLD\n<!-- end -->\nAfter.\n'
  made = report.render(page, tmp_path)
  assert made.startswith('Before.\n<!-- table embedded_tuning -->\n| arch')
  assert made.endswith('|\n<!-- end -->\nAfter.\n')
  assert 'OLD' not in made
  assert report.render(made, tmp_path) == made
