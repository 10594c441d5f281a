"""What records ask for when an SAE's files do not say it; all at once."""

import dataclasses
import functools
import json

from helpers import rated_records
from helpers import sealed
from jax import numpy as jnp
import numpy as np
import pytest

from experiments.records import make
from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.ratings import study as study_lib
from jumprelu_jax.records import schema
from jumprelu_jax.records import write
from jumprelu_jax.sae import released

FULL = details_lib.Details(model='embedded', site='resid_post', layer=2)
GIVEN = {'lm': 'embedded', 'text': 'a.txt', 'site': 'resid_post/2'}


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function that saves an SAE of the shipped model's size."""
  folder, rng = tmp_path_factory.mktemp('saes'), np.random.default_rng(0)
  sae = released.SAE(
    W_enc=jnp.asarray(rng.normal(size=(192, 8)), 'float32'),
    b_enc=jnp.zeros(8),
    W_dec=jnp.asarray(rng.normal(size=(8, 192)), 'float32'),
    b_dec=jnp.zeros(192),
    threshold=jnp.ones(8),
  )

  @functools.cache
  def save(name, format_name='jumprelu_jax', **changes):
    about = dataclasses.replace(FULL, **changes)
    api.SAE(sae, about).save(folder / name, format_name)
    return str(folder / name)

  return save


def run_of(sae, **values):
  request = make.Request(sae=sae, **values)
  return make.run_of(request, make.load_sae(request))


def missing(sae, **values):
  """The flags that the one error names, and the whole of it."""
  with pytest.raises(errors.InputError) as found:
    run_of(sae, **values)
  said = str(found.value)
  assert f'the files of {sae} do not say; give ' in said
  names = said.partition(' is missing')[0].partition(' are missing')[0]
  return names.split(', '), said


def test_all_that_is_missing_is_asked_for_at_once(saved):
  bare = saved('bare', model='', site='', layer=-1)
  assert missing(bare)[0] == ['--lm', '--text', '--site']
  for name in GIVEN:
    rest = {k: v for k, v in GIVEN.items() if k != name}
    flags, said = missing(bare, **rest)
    assert flags == [f'--{name}']
  assert 'such as resid_post/2' in said
  run = run_of(bare, **GIVEN)
  assert (run.lm.site, run.lm.layer, run.lm.path) == (
    'resid_post', 2, 'embedded',
  )  # fmt: skip
  assert run.text.heldout == 'a.txt'


def test_only_what_is_missing_is_asked_for(saved):
  assert missing(saved('full'))[0] == ['--text']
  run = run_of(saved('full'), text='a.txt')
  assert (run.lm.site, run.lm.layer) == ('resid_post', 2)


def test_names_of_other_libraries_are_repeated(saved):
  odd = saved('odd', site='blocks.2.hook_mlp', layer=-1)
  flags, said = missing(odd, text='a.txt')
  assert flags == ['--site']
  assert "its files say 'blocks.2.hook_mlp', layer -1" in said


THRESHOLDS = [name for name in formats.FORMATS if name != 'sparsify']


@pytest.mark.parametrize('format_name', THRESHOLDS)
def test_every_format_can_be_used_with_the_flags(saved, format_name):
  where = saved(format_name, format_name)
  flags = missing(where)[0]
  assert '--text' in flags
  given = {name.strip('-'): GIVEN[name.strip('-')] for name in flags}
  run = run_of(where, **given)
  assert (run.lm.site, run.lm.layer) == ('resid_post', 2)


def test_transcoders(saved):
  known = saved('known', site='mlp_in', target_site='mlp_out', target_layer=2)
  run = run_of(known, text='a.txt')
  assert (run.lm.target_site, run.lm.target_layer) == ('mlp_out', 2)
  odd = saved('odd target', site='mlp_in', target_site='hook', target_layer=2)
  flags, said = missing(odd)
  assert flags == ['--text', '--target']
  assert "its files say 'hook', layer 2" in said
  run = run_of(odd, text='a.txt', target='mlp_out/3')
  assert (run.lm.target_site, run.lm.target_layer) == ('mlp_out', 3)


def test_records_without_an_architecture_can_be_given_one(tmp_path):
  """What the error of a rating study says works, and changes nothing else."""
  folder = rated_records.write(tmp_path / 'a', [3, 7, 11], architecture='')
  with pytest.raises(errors.InputError, match='--architecture=NAME') as found:
    study_lib.prepare(tmp_path / 'study', {'records': (str(folder),)})
  assert str(folder) in str(found.value)
  before = schema.read(folder)
  unchanged = {path: path.read_bytes() for path in folder.glob('*.parquet')}
  write.name_architecture(folder, 'gated')
  after = schema.read(folder)
  assert after.source == dataclasses.replace(
    before.source, architecture='gated'
  )
  tables = {path: path.read_bytes() for path in folder.glob('*.parquet')}
  assert len(tables) == 4
  assert tables == unchanged
  assert (folder / 'seal.json').exists()
  study = study_lib.prepare(tmp_path / 'study', {'records': (str(folder),)})
  assert study.saes[0].architecture == 'gated'


def test_renaming_keeps_the_seal(tmp_path):
  files = sealed.records(tmp_path)
  write.name_architecture(tmp_path, 'new')
  assert (
    json.loads((tmp_path / 'records.json').read_text())['architecture'] == 'new'
  )
  path, read = files['records: latents.parquet']
  read()
  path.write_bytes(path.read_bytes() + b'x')
  with pytest.raises(errors.InputError, match='latents.parquet has'):
    read()
