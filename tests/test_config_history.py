"""Configs of older versions: keys that they lack mean what was done then."""

import json

from helpers import commands
import pytest

from configs import defaults
from jumprelu_jax import config as config_lib
from jumprelu_jax import config_history
from jumprelu_jax import embedded
from jumprelu_jax import errors
from jumprelu_jax import run_folder

#: A config as the first version wrote it, key by key.
FIRST = {
  'seed': 0,
  'lm': {'path': 'embedded', 'site': 'resid_post', 'layer': 2},
  'text': {'harvest': 'embedded', 'heldout': 'embedded', 'context_length': 128},
  'activations': {
    'sequences': 8000, 'sequences_per_batch': 32, 'bucket_rows': 1_000_000,
  },
  'sae': {
    'architecture': 'jumprelu', 'num_latents': 1024, 'initial_threshold': 0.05,
    'use_pre_encoder_bias': True, 'compute_dtype': 'float32',
  },
  'objective': {
    'name': 'l0', 'sparsity_coeff': 1e-3, 'sparsity_warmup_steps': 400,
    'kernel': 'rectangle', 'bandwidth': 0.01,
  },
  'optimizer': {
    'learning_rate': 7e-3, 'threshold_learning_rate': 0.02, 'beta1': 0.0,
    'beta2': 0.98, 'epsilon': 1e-8, 'warmup_steps': 50, 'decay_fraction': 1.0,
  },
  'train': {
    'steps': 2000, 'batch_size': 1024, 'steps_per_log': 50,
    'steps_per_checkpoint': 500,
  },
  'evaluation': {'sequences': 200, 'sequences_per_batch': 32},
  'mesh': {'data': 1, 'latent': 1},
  'sweep': {'sparsity_coeffs': [1e-3, 2e-3]},
}  # fmt: skip


def load(folder, config):
  (folder / 'config.json').write_text(json.dumps(config))
  return run_folder.load_run(folder)


def test_the_first_versions_config_loads(tmp_path):
  run = load(tmp_path, FIRST)
  assert run.sae.num_latents == 1024
  # That version stored and computed in float32; today's recipe says bfloat16.
  assert (run.lm.dtype, run.activations.dtype) == ('float32', 'float32')
  assert run.optimizer.decay == 'cosine'
  assert run.sweep.saes == ('jumprelu/l0/0.001/0.002',)


def test_every_key_that_came_later_has_a_row():
  """A new key needs a row in `config_history`, or old configs are refused."""
  today = set(config_lib.flatten(defaults.GEMMA_SCOPE))
  first = set(config_lib.flatten(FIRST)) - {'sweep.sparsity_coeffs'}
  assert today - first == set(config_history.BEFORE)


@pytest.mark.parametrize('key', config_history.BEFORE)
def test_a_key_that_is_missing_has_its_old_value(key, tmp_path):
  run = load(tmp_path, FIRST).with_values({'sweep.saes': ()})
  raw = run.to_dict()
  group, name = key.split('.')
  del raw[group][name]
  assert load(tmp_path, raw) == run


@pytest.mark.parametrize(
  ('change', 'match'),
  [
    (lambda raw: raw['sae'].update(num_latent=3), 'num_latent is not a config'),
    (lambda raw: raw['sae'].pop('num_latents'), 'missing.*sae.num_latents'),
    (lambda raw: raw.update(train=3), 'train=3: expected a group of keys'),
    (lambda raw: raw.update(sweep=None), 'sweep=None: expected a group'),
  ],
  ids=['unknown', 'missing', 'no_group', 'null'],
)
def test_what_no_version_wrote_is_refused(change, match, tmp_path):
  raw = json.loads(json.dumps(FIRST))
  change(raw)
  with pytest.raises(errors.InputError, match=match):
    load(tmp_path, raw)


def test_the_shipped_sae_has_a_config():
  run = run_folder.load_run(embedded.SAE)
  assert run.train.checkpoints_kept == 2
  assert run.train.max_bad_batches == 0


def test_a_workdir_of_an_older_version_is_resumed(tmp_path):
  raw = json.loads(json.dumps(FIRST))
  run = load(tmp_path, raw)
  run_folder.claim(tmp_path, run)  # the same
  other = run.with_values({'train.max_bad_batches': 1})
  with pytest.raises(
    errors.InputError, match='max_bad_batches: 0 there, 1 now'
  ):
    run_folder.claim(tmp_path, other)
  assert json.loads((tmp_path / 'config.json').read_text()) == raw


@pytest.mark.slow
@pytest.mark.parametrize(
  'args',
  [
    ('evaluate', '--sae=SAE', '--sequences=8'),
    ('evaluate', '--sae=embedded', '--sequences=8'),
    ('records', '--sae=SAE', '--tokens=1024', '--out=OUT'),
    ('records', '--sae=embedded', '--tokens=1024', '--out=OUT'),
    ('dashboard', '--sae=embedded', '--tokens=1024', '--out=OUT'),
    ('random_sae', '--like=embedded', '--positions=1024', '--out=OUT'),
  ],
  ids=' '.join,
)
def test_commands_take_the_shipped_sae(args, tmp_path):
  launcher, *flags = (
    arg.replace('SAE', str(embedded.SAE)).replace('OUT', str(tmp_path / 'out'))
    for arg in args
  )
  done = commands.run(launcher, *flags)
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_inspect_shows_the_shipped_sae():
  done = commands.run('inspect', 'embedded')
  assert done.returncode == 0, done.stderr
  assert 'W_enc          [128, 1024]' in done.stdout
