"""Mistakes of a new user, and what each is told: what, got, expected, remedy.

Each case is a mistake and words of its message, from left to right: what is
wrong and what was got, what would be right, and what to do.
"""

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest

from jumprelu_jax import api
from jumprelu_jax import architectures
from jumprelu_jax import config as config_lib
from jumprelu_jax import errors
from jumprelu_jax import finished
from jumprelu_jax import inputs
from jumprelu_jax import lock
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import seals
from jumprelu_jax import supply
from jumprelu_jax import sweeps
from jumprelu_jax.activations import store as store_lib
from jumprelu_jax.text import sources


def told(action, *words):
  """Checks that an action is refused in one line that has these words."""
  with pytest.raises(errors.InputError) as caught:
    action()
  said = ' '.join(str(caught.value).split())
  assert re.search('.*'.join(map(re.escape, words)), said), said
  assert said[-1] in '.?'
  return said


def sweep(run, workdir):
  """What experiments.sweep does, but for flags and pictures."""
  do(run, sweeps.expand(run), workdir)


def train(run, workdir):
  """What experiments.train does, which has the architecture of config.sae."""
  prepared = inputs.prepare(run)
  do(run, {architectures.name(run): run}, workdir, prepared)


def do(run, swept, workdir, prepared=None):
  prepared = prepared or inputs.prepare(next(iter(swept.values())))
  with run_folder.claimed(workdir, run):
    return runs.run_all(prepared, swept, workdir)


# Values of a recipe: (dotted key, value, words of the message).
VALUES = [
  ('lm.path', 'gemma-2b', 'model', 'gemma-2b', 'does not exist', 'give'),
  ('lm.layer', 12, 'layer', '12', 'layers 0 to 1'),
  ('lm.layer', -1, 'config.lm.layer=-1 is out of range', 'expected >= 0'),
  ('lm.site', 'residual', 'residual', 'known sites', 'resid_post'),
  ('lm.dtype', 'float16', "config.lm.dtype='float16'", 'expected one of'),
  ('lm.dtype', 'fp32', "'fp32'", 'expected one of float32, bfloat16'),
  ('text.harvest', 'texts.jsonl', 'texts.jsonl does not exist', 'give'),
  ('text.harvest', 'book.pdf', 'book.pdf does not exist', '.jsonl'),
  ('text.harvest', 'https://x.org/a.txt', 'cannot be fetched', 'local path'),
  ('text.harvest', 'hf://datasets/pile', 'no dataset', 'OWNER/NAME'),
  ('text.harvest', 'a.txt,,b.txt', 'without a path', 'one comma'),
  ('text.harvest', 'a.txt?wieght=2', "'wieght=2'", 'column, weight'),
  ('text.harvest', 'a.txt?weight=-1', 'weight=-1', 'above 0'),
  ('text.context_length', 64, '=64 is longer than the 32 positions'),
  ('text.context_length', 1, '=1 is out of range', 'expected >= 2'),
  ('text.packing', 'packed', "'packed'", 'expected one of pack, document'),
  ('text.bos_id', 50256, '50256', 'not in the vocabulary', '40'),
  ('activations.mode', 'online', "'online'", 'expected one of stored, live'),
  ('activations.dtype', 'int8', "'int8'", 'expected one of float32, bfloat16'),
  ('activations.format', 'h5', "'h5'", 'expected one of npy, zarr3'),
  ('activations.sites', ('mlp_out/0',), 'lacks the site to train at', 'add it'),
  ('activations.sites', ('resid_post',), 'resid_post', 'name/layer'),
  ('activations.sequences', 1, 'sequences=1', 'less than', 'harvest from more'),
  ('activations.bucket_rows', 8, 'bucket_rows=8', 'make it larger'),
  ('activations.bucket_rows', 32, '=32 is less than', 'make the bucket larger'),
  ('activations.store', 'stores/none', 'holds no store', 'experiments.harvest'),
  ('sae.architecture', 'jumprelu2', 'is not known', 'expected one of jumprelu'),
  ('sae.num_latents', 0, 'config.sae.num_latents=0', 'expected >= 1'),
  ('sae.num_latents', 1e4, 'num_latents=10000.0 has type float', 'int'),
  ('sae.num_latents', '4k', "num_latents='4k' has type str", 'expected int'),
  ('sae.k', 32, 'config.sae.k=32 is not less than', '=32', 'lower it'),
  ('sae.initial_threshold', 0.0, 'threshold=0.0', 'expected > 0'),
  ('objective.name', 'l_0', "'l_0' is not known", 'expected one of'),
  ('objective.name', 'l0+l0', 'a part is there twice', 'expected one of'),
  ('objective.name', 'gated', 'jumprelu cannot be trained by', 'it can by'),
  ('objective.sparsity_coeff', -1.0, 'sparsity_coeff=-1.0', 'expected >= 0'),
  ('objective.sparsity_coeff', float('nan'), '=nan', 'expected >= 0'),
  ('objective.bandwidth', 0.0, 'bandwidth=0.0 is out of', 'expected > 0'),
  ('objective.kernel', 'box', "'box' is not known", 'rectangle'),
  ('objective.estimator', 'ste', "'ste' is not known", 'threshold'),
  ('objective.components', ('controller',), "'controller'", 'l0_controller'),
  ('optimizer.learning_rate', 0.0, 'learning_rate=0.0', 'expected > 0'),
  ('optimizer.beta2', 1.0, 'beta2=1.0', '<= 0.99999'),
  ('optimizer.warmup_steps', 9999, 'warmup_steps=9999', 'shorten the warm-up'),
  ('train.batch_size', 0, 'batch_size=0', 'expected >= 1'),
  ('train.batch_size', 4096, 'less than', 'batch_size=4096', 'make the bucket'),
  ('train.steps_per_checkpoint', 15, '=15', 'multiple', 'steps_per_log=10'),
  ('train.checkpoints_kept', 1, 'checkpoints_kept=1', 'expected >= 2'),
  ('mesh.data', 3, 'batch_size=64', "'data'=3", 'e.g. 66'),
  ('mesh.data', 64, 'needs 64 devices', 'there are 8', 'so that their product'),
  ('sweep.saes', ('jumprelu/l0',), "'jumprelu/l0'", 'jumprelu/l0/1e-3/2e-3'),
  ('sweep.saes', ('jumprelu/l0/small',), 'small', 'not of the form'),
  ('sweep.saes', ('topk/aux_k/1.5',), 'topk/aux_k/1.5', 'a whole number'),
  ('sweep.saes', ('jumprelu/l0/1/1',), 'none twice'),
  ('sweep.over', ('lr=1e-3/1e-4',), 'lr=1e-3/1e-4', 'optimizer.learning_rate'),
]  # fmt: skip


@pytest.mark.parametrize(
  ('key', 'value', 'words'),
  [(key, value, words) for key, value, *words in VALUES],
  ids=[f'{key}={value}' for key, value, *_ in VALUES],
)
def test_values_of_a_recipe(tiny_run, tmp_path, key, value, words):
  workdir = tmp_path / 'run'
  command = sweep if key.startswith('sweep.') else train
  told(lambda: command(tiny_run.with_values({key: value}), workdir), *words)
  if key != 'activations.store':  # which is opened when the run has begun
    assert not workdir.exists()


def test_a_recipes_unknown_and_missing_keys(tiny_run):
  raw = tiny_run.to_dict()
  build = config_lib.RunConfig.from_config_dict
  wrong = raw | {'sae': raw['sae'] | {'num_latent': 3}}
  told(
    lambda: build(wrong), 'config.sae.num_latent is not', 'did you mean', 'nts'
  )
  told(lambda: build(raw | {'optimiser': {}}), 'did you mean config.optimizer')
  less = {key: value for key, value in raw.items() if key != 'mesh'}
  told(lambda: build(less), 'missing config keys: config.mesh')
  told(lambda: build(raw | {'sae': 3}), 'config.sae=3', 'expected a group')


@pytest.fixture(scope='module')
def finished_run(tiny_run, tmp_path_factory):
  """(config, folder) of a sweep of one; not to be changed."""
  run = tiny_run.with_values({'sweep.saes': ('jumprelu/l0/1e-2',)})
  workdir = tmp_path_factory.mktemp('mistakes') / 'run'
  sweep(run, workdir)
  return run, workdir


@pytest.fixture
def copy(finished_run, tmp_path):
  """The same in a folder that a test may change."""
  run, workdir = finished_run
  shutil.copytree(workdir, tmp_path / 'run')
  return run, tmp_path / 'run'


def test_a_workdir_of_another_config(copy):
  run, workdir = copy
  other = run.with_values({'seed': 5, 'train.batch_size': 32})
  told(
    lambda: sweep(other, workdir),
    'holds a run with another config',
    'seed: 0 there, 5 now',
    'train.batch_size: 64 there, 32 now',
    'give another --workdir',
  )


def test_a_workdir_that_holds_something_else(tiny_run, tmp_path):
  (tmp_path / 'thesis.tex').write_text('precious')
  told(lambda: sweep(tiny_run, tmp_path), 'holds no run', 'give an empty or a')
  assert os.listdir(tmp_path) == ['thesis.tex']


def test_a_workdir_that_is_a_file(tiny_run, tmp_path):
  (tmp_path / 'run').write_text('')
  told(lambda: sweep(tiny_run, tmp_path / 'run'), 'holds no run', 'new folder')


def test_a_workdir_in_which_another_run_is_at_work(copy):
  run, workdir = copy
  with lock.held(workdir / 'run.lock'):
    told(
      lambda: sweep(run, workdir),
      f'{workdir} is in use by another run (process {os.getpid()} on ',
      'wait for it, end it, or give another folder',
    )


def test_a_harvest_in_which_another_is_at_work(tiny_run, tmp_path):
  prepared = inputs.prepare(tiny_run)
  with lock.held(tmp_path / 'harvest_0.lock'):
    told(
      lambda: supply.harvest(prepared, str(tmp_path)),
      f'{tmp_path} is in use by another run',
      'wait for it',
    )
  assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_exchanged_meanwhile(copy, tiny_lm):
  run, workdir = copy
  other = workdir.parent / pathlib.Path(tiny_lm).name
  shutil.copytree(tiny_lm, other)
  raw = json.loads((other / 'tokenizer_config.json').read_text())
  (other / 'tokenizer_config.json').write_text(json.dumps(raw | {'new': 1}))
  prepared = inputs.prepare(run.with_values({'lm.path': str(other)}))
  named = sweeps.expand(run)
  told(
    lambda: runs.run_all(prepared, named, workdir),
    f'{workdir} was begun with other inputs',
    'tokenizer_config.json',
    'there',
    'now',
    'restore them, or give another --workdir',
  )


def test_an_sae_that_was_edited_by_hand(copy):
  run, workdir = copy
  path = workdir / 'jumprelu_l0_0.01' / 'evaluation.json'
  path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
  words = ('is damaged', 'evaluation.json has', 'Restore that file; or remove')
  told(lambda: sweep(run, workdir), *words)
  told(lambda: finished.read([workdir]), *words)


@pytest.mark.parametrize('name', ['evaluation.json', 'latents.npz'])
def test_what_a_damaged_evaluation_is_told_to_do_works(copy, name):
  run, workdir = copy
  wanted = (workdir / 'results.csv').read_bytes()
  path = workdir / 'jumprelu_l0_0.01' / name
  content = path.read_bytes()
  path.write_bytes(content[:-9])
  told(lambda: sweep(run, workdir), f'or remove {path} and give the command')
  path.unlink()
  assert api.load_sae(path.parent).details.l0 is None or (name == 'latents.npz')
  sweep(run, workdir)
  assert path.read_bytes() == content
  assert (workdir / 'results.csv').read_bytes() == wanted


def test_an_evaluation_of_another_version_can_be_made_again(copy):
  run, workdir = copy
  path = workdir / 'jumprelu_l0_0.01' / 'evaluation.json'
  row = json.loads(path.read_text())
  del row['fvu']
  path.write_text(json.dumps(row))
  names = ('config.json', 'params.npz', 'metrics.jsonl', 'latents.npz')
  seals.write(path.parent, 'an SAE', (*names, path.name))
  told(lambda: sweep(run, workdir), f'{path} lacks fvu', 'remove it and give')
  path.unlink()
  sweep(run, workdir)
  assert 'fvu' in json.loads(path.read_text())


def test_a_folder_that_is_no_sae(tmp_path):
  told(
    lambda: run_folder.load_run(tmp_path),
    'config.json does not exist',
    'give a',
  )


def test_a_run_given_where_an_sae_is_wanted(finished_run):
  run, workdir = finished_run
  prepared = inputs.prepare(run)
  told(
    lambda: list(sae_folders.evaluate([(workdir, run)], prepared)),
    'params.npz does not exist',
    'give a trained SAE',
  )


def test_an_sae_of_another_model(finished_run):
  run, workdir = finished_run
  prepared = inputs.prepare(run.with_values({'lm.site': 'attn_z'}))
  folders = [(workdir / 'jumprelu_l0_0.01', run)]
  told(
    lambda: list(sae_folders.evaluate(folders, prepared)),
    'the SAE is for activations of size 16, but attn_z',
    'has size 12',
  )


def test_runs_that_are_not_finished(tmp_path):
  told(lambda: finished.read([tmp_path]), 'results.csv does not exist', 'give')


def test_the_same_run_given_twice(finished_run):
  _, workdir = finished_run
  told(lambda: finished.read([workdir, workdir]), 'is there twice', 'differ in')


def test_a_store_of_another_model_or_text(finished_run, tmp_path):
  run, workdir = finished_run
  other = run.with_values(
    {
      'activations.store': str(workdir / 'activations'),
      'text.context_length': 8,
    }
  )
  told(
    lambda: sweep(other, tmp_path / 'other'),
    'holds a store of something else',
    'context_length: 16 there, 8 wanted',
    'name another folder',
  )


def test_a_store_that_is_not_finished(finished_run, tmp_path):
  run, workdir = finished_run
  shutil.copytree(workdir / 'activations', tmp_path / 'stores')
  (tmp_path / 'stores' / 'resid_post_1' / 'shard_00000.json').unlink()
  other = run.with_values({'activations.store': str(tmp_path / 'stores')})
  told(
    lambda: sweep(other, tmp_path / 'run'),
    '1 of',
    'shards are not there',
    'finish it with experiments.harvest',
  )


def test_a_url_for_a_format_of_local_files(tmp_path):
  told(
    lambda: store_lib.formats.Npy().write(
      'gs://bucket/store/shard.npy', np.zeros((1, 2), np.float32)
    ),
    'npy writes to local folders only, got gs://bucket',
    'use format zarr3',
  )


def test_texts_of_the_wrong_kind(tmp_path):
  def read(name, content, spec=''):
    path = tmp_path / name
    path.write_bytes(content)
    return lambda: list(sources.read(sources.parse(f'{path}{spec}')[0]))

  row = json.dumps({'body': 'words', 'n': 3}).encode() + b'\n'
  told(read('a.jsonl', row), "column 'text'", "['body', 'n']", '?column=NAME')
  told(read('b.jsonl', row, '?column=n'), 'type int', 'expected a string')
  told(read('c.jsonl', b''), 'is empty', 'give one with documents')
  told(read('d.txt', b' \n \n'), 'has no text', 'give one with documents')
  told(read('e.pdf', b'%PDF'), 'in a format that its name does not tell', 'end')
  told(read('f.jsonl.gz', b'no gzip'), 'cannot be read', 'give it anew')
  told(read('g.parquet', b'PAR1'), 'cannot be read', 'with the suffix of its')
  told(read('h.jsonl', row, '?split=test'), 'no splits', 'leave it out')


def test_models_that_are_damaged_or_unknown(tiny_run, tiny_lm, tmp_path):
  def with_config(name, **values):
    folder = tmp_path / name
    shutil.copytree(tiny_lm, folder)
    raw = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(raw | values))
    return tiny_run.with_values({'lm.path': str(folder)})

  other = with_config('other', model_type='mamba')
  told(lambda: inputs.prepare(other), 'mamba', 'gemma2')
  wider = with_config('wider', hidden_size=32)
  told(lambda: inputs.prepare(wider), 'shape', 'expected')
  none = with_config('none')
  (tmp_path / 'none' / 'tokenizer.json').unlink()
  told(lambda: inputs.prepare(none), 'tokenizer.json', 'does not exist')
  cut = with_config('cut')
  weights = tmp_path / 'cut' / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-8])
  told(lambda: inputs.prepare(cut), 'model.safetensors', 'damaged or truncated')
