"""What a run's inputs must be: each misfit has its message; and many sites."""

import json
import shutil

from helpers import folders
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import inputs
from jumprelu_jax import loop
from jumprelu_jax import supply
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.lm import sites


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'lm.site': 'resid_pots'}, 'known sites: resid_pre, attn_z.*resid_post'),
    ({'lm.layer': 2}, 'it has layers 0 to 1'),
    ({'lm.path': 'no/such/folder'}, 'no/such/folder does not exist'),
    ({'text.harvest': 'no/such/text.jsonl'}, 'give a .jsonl file'),
    ({'text.context_length': 33}, 'longer than the 32 positions'),
    ({'activations.sequences': 2}, 'harvest from more sequences'),
    ({'mesh.data': 64}, 'needs 64 devices, but there are 8'),
    ({'activations.sites': ['mlp_out/0']}, 'lacks the site to train at, resid'),
    (
      {'activations.sites': ['resid_post/1', 'mlp_out/0', 'resid_post/1']},
      'has a site twice; name each once',
    ),
    ({'activations.sites': ['resid_post']}, 'not of the form name/layer'),
    ({'activations.sites': ['resid_post/-1']}, 'not of the form name/layer'),
    ({'activations.sites': ['resid_pots/1']}, 'known sites: resid_pre, attn_z'),
    (
      {'activations.sites': ['resid_post/1', 'mlp_out/9']},
      'it has layers 0 to 1',
    ),
    ({'text.bos_id': 40}, 'token id 40 .* not in the vocabulary'),
    ({'text.special_ids': [3, -1]}, 'token id -1 .* not in the vocabulary'),
    (
      {'mesh.data': 4, 'activations.sequences_per_batch': 6},
      "activations.sequences_per_batch=6 is not .*'data'=4; use a multiple",
    ),
    (
      {'mesh.data': 4, 'evaluation.sequences_per_batch': 6},
      "evaluation.sequences_per_batch=6 is not .*'data'=4; use a multiple",
    ),
    ({'sae.architecture': 'top'}, 'is not known; expected one of jumprelu'),
  ],
  ids=str,
)
def test_input_that_does_not_fit_is_refused(tiny_run, values, message):
  with pytest.raises(errors.InputError, match=message):
    inputs.prepare(tiny_run.with_values(values))


TRANSCODER = {
  'sae.architecture': 'jumprelu_transcoder',
  'lm.site': 'mlp_in',
  'lm.target_site': 'mlp_out',
}


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'lm.site': 'mlp_out', 'lm.target_site': 'mlp_in'},
      'mlp_in of layer 1 does not come after mlp_out of layer 1',
    ),
    ({'lm.target_site': 'mlp_in'}, 'does not come after mlp_in of layer 1'),
    ({'lm.target_layer': 0}, 'mlp_out of layer 0 does not come after mlp_in'),
    ({'lm.target_site': 'mlp_uot'}, 'known sites: resid_pre, attn_z'),
    ({'lm.target_layer': 2}, 'it has layers 0 to 1'),
    ({'lm.target_site': ''}, 'jumprelu_transcoder needs target'),
    (
      {'activations.sites': ['mlp_in/1', 'mlp_out/0']},
      'lacks the site to train at, mlp_out of layer 1',
    ),
    (
      {'activations.sites': ['mlp_out/1']},
      'lacks the site to train at, mlp_in of layer 1',
    ),
  ],
  ids=str,
)
def test_target_that_does_not_fit_is_refused(tiny_run, values, message):
  with pytest.raises(errors.InputError, match=message):
    inputs.prepare(tiny_run.with_values(TRANSCODER | values))


def test_target_may_be_of_a_later_block(tiny_run):
  # resid_pre comes first in a block, and after all of the block before.
  values = {
    'lm.site': 'resid_post',
    'lm.layer': 0,
    'lm.target_site': 'resid_pre',
    'lm.target_layer': 1,
  }
  prepared = inputs.prepare(tiny_run.with_values(TRANSCODER | values))
  needed = (sites.Site('resid_post', 0), sites.Site('resid_pre', 1))
  assert (prepared.where, prepared.target) == needed
  assert prepared.harvested == prepared.trained_on == needed


def test_empty_heldout_text_is_refused(tiny_run, tmp_path):
  empty = tmp_path / 'empty.jsonl'
  empty.write_text('')
  run = tiny_run.with_values({'text.heldout': str(empty)})
  with pytest.raises(errors.InputError, match='empty; give one with documents'):
    inputs.prepare(run)


def test_truncated_model_is_refused(tiny_run, tiny_lm, tmp_path):
  shutil.copytree(tiny_lm, tmp_path / 'lm')
  weights = tmp_path / 'lm' / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])
  run = tiny_run.with_values({'lm.path': str(tmp_path / 'lm')})
  with pytest.raises(errors.InputError, match='damaged or truncated'):
    inputs.prepare(run)


def test_model_without_bos_needs_one_in_the_config(tiny_run, tiny_lm, tmp_path):
  shutil.copytree(tiny_lm, tmp_path / 'lm')
  path = tmp_path / 'lm' / 'config.json'
  config = json.loads(path.read_text())
  for other in (tmp_path / 'lm').glob('generation_config.json'):
    other.unlink()
  nothing = {'bos_token_id': None, 'eos_token_id': None, 'pad_token_id': None}
  path.write_text(json.dumps(config | nothing))
  run = tiny_run.with_values({'lm.path': str(tmp_path / 'lm')})
  with pytest.raises(errors.InputError, match='set config.text.bos_id'):
    inputs.prepare(run)
  prepared = inputs.prepare(run.with_values({'text.bos_id': 1}))
  assert prepared.architecture.bos_id == 1
  plan = prepared.plan(tmp_path / 'sequences.npy')
  assert set(plan.tokens_NL[:, 0].tolist()) == {1}


def test_model_without_bos_starts_sequences_with_eos_and_says_so(
  tiny_run, tiny_lm, tmp_path, capsys
):
  shutil.copytree(tiny_lm, tmp_path / 'lm')
  path = tmp_path / 'lm' / 'config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {'bos_token_id': None}))
  run = tiny_run.with_values({'lm.path': str(tmp_path / 'lm')})
  prepared = inputs.prepare(run)
  assert 'no BOS token; sequences start with its special token 1' in (
    capsys.readouterr().err
  )
  assert set(prepared.heldout_NL[:, 0].tolist()) == {1}


def test_special_tokens_of_the_config_are_no_rows(tiny_run, tmp_path):
  plans = {}
  for special in ((), (3, 30)):  # 'a' and '.'
    run = tiny_run.with_values({'text.special_ids': special})
    folder = tmp_path / str(len(special))
    prepared = inputs.prepare(run)
    supply.harvest(prepared, folder)
    store = store_lib.Store(folder / 'resid_post_1')
    tokens = [store.origin(i)[:, 0] for i in range(len(store.rows_per_shard))]
    plans[special] = np.concatenate(tokens)
  every, kept = plans.values()
  assert np.isin(every, (3, 30)).sum() > 100
  # PAD, EOS and BOS are the model's own.
  assert not np.isin(every, (0, 1, 2)).any()
  assert not np.isin(kept, (0, 1, 2, 3, 30)).any()
  assert len(kept) == np.sum(~np.isin(every, (3, 30)))


@pytest.fixture(scope='module')
def many_sites(tiny_run, tmp_path_factory):
  """(run, folder): stores of three sites, harvested in one pass."""
  folder = tmp_path_factory.mktemp('stores')
  run = tiny_run.with_values(
    {'activations.sites': ['mlp_out/0', 'resid_post/1', 'attn_z/1']}
  )
  supply.harvest(inputs.prepare(run), str(folder))
  return run, folder


def test_sites_of_one_pass_are_those_of_a_pass_each(
  many_sites, tiny_run, tmp_path
):
  run, folder = many_sites
  names = {path.name for path in folder.iterdir()}
  stores = {'mlp_out_0', 'resid_post_1', 'attn_z_1'}
  assert names == {'sequences.npy', 'sequences.json', *stores}
  origins = []
  for site in (sites.Site('mlp_out', 0), sites.Site('attn_z', 1)):
    alone = tiny_run.with_values({'lm.site': site.name, 'lm.layer': site.layer})
    supply.harvest(inputs.prepare(alone), str(tmp_path))
    name = f'{site.name}_{site.layer}'
    one, other = (
      store_lib.Store(folder / name),
      store_lib.Store(tmp_path / name),
    )
    assert one.description == other.description
    assert one.d_model == {'mlp_out': 16, 'attn_z': 12}[site.name]
    for index in range(len(one.rows_per_shard)):
      np.testing.assert_allclose(
        one.open(index)[:], other.open(index)[:], rtol=1e-5, atol=1e-6
      )
    origins.append(one.origin(1))
  np.testing.assert_array_equal(*origins)


def test_training_from_a_store_outside_is_training_from_its_own(
  many_sites, tiny_run, tmp_path
):
  run, folder = many_sites
  before, then = folders.contents(folder), folders.times(folder)
  found = []
  for name, values in (
    ('own', {}),
    ('outside', {'activations.store': str(folder)}),
  ):
    run = tiny_run.with_values(values)
    workdir = tmp_path / name
    workdir.mkdir()
    prepared = inputs.prepare(run)
    shards = supply.open_shards(prepared, workdir)
    found.append(loop.fit(run, shards, prepared.mesh, workdir / 'sae'))
    assert (workdir / 'activations').exists() == (name == 'own')
  one, other = found
  np.testing.assert_allclose(
    one.sae.W_dec, other.sae.W_dec, rtol=1e-4, atol=1e-5
  )
  assert (folders.contents(folder), folders.times(folder)) == (
    before,
    then,
  )


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'lm.site': 'resid_pre'}, 'resid_pre_1 holds no store of activations'),
    ({'text.context_length': 8}, 'context_length: 16 there, 8 wanted'),
    ({'seed': 3}, 'seed: 0 there, 3 wanted'),
    ({'lm.dtype': 'bfloat16'}, "model_dtype: 'float32' there, 'bfloat16' want"),
    ({'activations.dtype': 'bfloat16'}, "dtype: 'float32' there, 'bfloat16' w"),
    ({'text.bos_id': 1}, 'bos_id: 2 there, 1 wanted'),
    ({'text.special_ids': [5]}, r'special_ids: \(.*\) there, \(.*5\) wanted'),
  ],
  ids=str,
)
def test_store_that_does_not_fit_is_refused(
  many_sites, tiny_run, tmp_path, values, message
):
  store = {'activations.store': str(many_sites[1])}
  run = tiny_run.with_values(store | values)
  with pytest.raises(errors.InputError, match=message):
    supply.open_shards(inputs.prepare(run), tmp_path)


def test_incomplete_store_is_refused(many_sites, tiny_run, tmp_path):
  folder = tmp_path / 'stores'
  shutil.copytree(many_sites[1], folder)
  (folder / 'resid_post_1' / 'shard_00001.json').unlink()
  run = tiny_run.with_values({'activations.store': str(folder)})
  with pytest.raises(
    errors.InputError,
    match=r'1 of \d+ shards are not there; finish it with experiments.harvest',
  ):
    supply.open_shards(inputs.prepare(run), tmp_path)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'text.context_length': 8}, 'context_length: 16 there, 8 wanted'),
    ({'activations.sequences': 100}, 'sequences: 128 there, 100 wanted'),
    ({'activations.max_norm_multiple': 3.0}, 'max_norm_multiple: 0.0 there, 3'),
  ],
  ids=str,
)
def test_harvest_into_a_folder_of_something_else_leaves_it_alone(
  many_sites, values, message
):
  run, folder = many_sites
  before, then = folders.contents(folder), folders.times(folder)
  with pytest.raises(errors.InputError, match=message):
    supply.harvest(inputs.prepare(run.with_values(values)), str(folder))
  assert (folders.contents(folder), folders.times(folder)) == (
    before,
    then,
  )


def test_refused_harvest_writes_no_sequences(many_sites, tmp_path):
  run, folder = many_sites
  shutil.copytree(folder / 'resid_post_1', tmp_path / 'resid_post_1')
  other = run.with_values({'seed': 1})
  with pytest.raises(errors.InputError, match='seed: 0 there, 1 wanted'):
    supply.harvest(inputs.prepare(other), str(tmp_path))
  assert [path.name for path in tmp_path.iterdir()] == ['resid_post_1']


def test_sequences_of_another_text_are_not_taken(tiny_run, tmp_path):
  # As if killed before the first manifest.
  inputs.prepare(tiny_run).plan(tmp_path / 'sequences.npy')
  before = (tmp_path / 'sequences.npy').read_bytes()
  text = tmp_path / 'other.jsonl'
  text.write_text(json.dumps({'text': 'another text ' * 100}) + '\n')
  other = tiny_run.with_values({'text.harvest': str(text)})
  with pytest.raises(errors.InputError, match='other.jsonl.*delete this file'):
    supply.harvest(inputs.prepare(other), str(tmp_path))
  assert (tmp_path / 'sequences.npy').read_bytes() == before
