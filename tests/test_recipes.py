"""Every recipe is a valid config of a place that its model has."""

import importlib
import json
import pathlib

import pytest

from jumprelu_jax import config as config_lib
from jumprelu_jax import train
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.text import sources

CONFIGS = pathlib.Path(__file__).parent.parent / 'configs'
RECIPES = sorted(
  path.stem
  for path in CONFIGS.glob('*.py')
  if path.stem not in ('__init__', 'common', 'defaults')
)
HUB = json.loads(
  (pathlib.Path(__file__).parent / 'data' / 'hub_configs.json').read_text()
)


def load(name, arg):
  recipe = importlib.import_module(f'configs.{name}')
  return config_lib.RunConfig.from_config_dict(recipe.get_config(arg).to_dict())


def architecture_of(run):
  if run.lm.path == config_lib.EMBEDDED:
    from jumprelu_jax import embedded

    return huggingface.load_architecture(embedded.LM)
  return hf_config.architecture(HUB[run.lm.path]['config'], run.lm.path)


@pytest.mark.parametrize('arg', ['', 'quick'])
@pytest.mark.parametrize('name', RECIPES)
def test_recipe_fits_its_model(name, arg):
  run = load(name, arg)
  train.check(run)
  architecture = architecture_of(run)
  where = sites.Site(run.lm.site, run.lm.layer)
  named = tuple(map(sites.parse, run.activations.sites)) or (where,)
  assert where in named
  for site in named:
    architecture.check_site(site)
  assert run.text.context_length <= architecture.max_positions
  for spec in (run.text.harvest, run.text.heldout):
    assert spec == config_lib.EMBEDDED or sources.parse(spec)


@pytest.mark.parametrize('name', RECIPES)
def test_header_says_what_a_run_takes(name):
  header = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in header
  for word in ('Hardware:', 'okens', 'Hours:', 'Store:'):
    assert word in header, word


def test_paper_recipe_harvests_the_papers_places():
  run = load('gemma2_9b', '')
  assert set(run.activations.sites) == {
    f'{site}/{layer}'
    for site in ('resid_post', 'mlp_out', 'attn_z')
    for layer in (9, 20, 31)
  }
  assert run.train.steps * run.train.batch_size == pytest.approx(8e9, rel=1e-3)
