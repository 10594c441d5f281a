"""Convert, inspect, and a release for the hub, as commands."""

import json
import os
import pathlib
import subprocess
import sys

from helpers import format_saes
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import hub

ROOT = pathlib.Path(__file__).parents[1]


def run(module, *args):
  """Runs a launcher; returns (exit status, stdout, stderr)."""
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{module}', *map(str, args)],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
  sae = format_saes.SAES['jumprelu']
  formats.save(sae, format_saes.DETAILS, tmp_path / 'sae', 'jumprelu_jax')
  return tmp_path / 'sae'


@pytest.mark.slow
def test_convert(folder, tmp_path):
  target = tmp_path / 'out'
  status, _, told = run(
    'convert', f'--source={folder}', f'--target={target}', '--format=saelens'
  )
  assert status == 0, told
  want, _ = formats.load(folder)
  got, details = formats.load(target)
  assert formats.recognise(target)[0] == 'saelens'
  assert details.model == 'google/gemma-2-2b'
  np.testing.assert_array_equal(got.W_enc, want.W_enc)
  np.testing.assert_array_equal(got.threshold, want.threshold)


@pytest.mark.slow
def test_convert_refuses_what_a_format_cannot_hold(folder, tmp_path):
  target = tmp_path / 'out'
  status, _, told = run(
    'convert', f'--source={folder}', f'--target={target}', '--format=sparsify'
  )
  assert status == 2
  assert 'thresholds' in told
  assert 'Traceback' not in told
  assert not target.exists() or not any(target.iterdir())


@pytest.mark.slow
def test_inspect(folder):
  status, told, _ = run('inspect', folder / 'params.npz')
  assert status == 0
  lines = told.splitlines()
  assert lines[0] == f'{folder}: jumprelu_jax'
  assert 'model          google/gemma-2-2b' in lines
  assert any(line.startswith('W_enc          [8, 24] from ') for line in lines)
  status, _, told = run('inspect', folder / 'nothing')
  assert status == 2
  assert told.startswith('error: ')


def test_a_release_is_laid_out_as_gemma_scope(tmp_path):
  where = hub.write_release(
    format_saes.SAES['jumprelu'],
    format_saes.DETAILS,
    tmp_path,
    'someone/saes',
    format_name='gemma_scope',
    metrics={'L0': 7.5, 'FVU': 0.21},
    recipe='{"seed": 0}',
  )
  assert where == tmp_path / 'layer_3' / 'width_24' / 'average_l0_8'
  assert formats.recognise(where)[0] == 'gemma_scope'
  card = (where / 'README.md').read_text()
  assert 'base_model: google/gemma-2-2b' in card
  assert "load_sae('someone/saes/layer_3/width_24/average_l0_8')" in card
  assert '| FVU | 0.21 |' in card
  assert '"seed": 0' in card


@pytest.mark.parametrize(
  ('latents', 'width'),
  [(16_384, '16k'), (65_536, '65k'), (131_072, '131k'), (1_048_576, '1m')],
)
def test_widths_are_named_as_in_gemma_scope(latents, width):
  details = details_lib.Details(layer=20)
  name = hub.folder_of(details, latents, 71.2)
  assert name == f'layer_20/width_{width}/average_l0_71'


def test_a_hub_id_fetches_its_folder_only(tmp_path, monkeypatch):
  import huggingface_hub

  asked = {}

  def fetch(repository, allow_patterns):
    asked.update(repository=repository, patterns=allow_patterns)
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fetch)
  name = 'google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71'
  found = hub.resolve_sae(name)
  assert found == tmp_path / 'layer_20/width_16k/average_l0_71'
  assert asked == {
    'repository': 'google/gemma-scope-2b-pt-res',
    'patterns': ['layer_20/width_16k/average_l0_71/*'],
  }


@pytest.mark.parametrize('name', ['./nothing', '/nothing', 'nothing', 'a/../b'])
def test_what_is_no_folder_and_no_hub_id_is_refused(name, monkeypatch):
  import huggingface_hub

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', pytest.fail)
  with pytest.raises(errors.InputError, match='does not exist'):
    hub.resolve_sae(name)


def test_a_failed_download_is_one_error(monkeypatch):
  import huggingface_hub

  def fail(*_, **__):
    raise OSError('no network')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(errors.InputError, match='no network'):
    hub.resolve_sae('someone/saes/layer_1')


@pytest.mark.slow
def test_release_is_written_without_a_network(folder, tmp_path):
  root = tmp_path / 'release'
  evaluation = {'l0': 7.5, 'fvu': 0.21, 'delta_lm_loss': 0.1}
  (folder / 'evaluation.json').write_text(json.dumps(evaluation))
  (folder.parent / 'pareto.png').write_bytes(b'a picture')
  status, _, told = run(
    'release', f'--sae={folder}', '--repository=someone/saes', f'--out={root}'
  )
  assert status == 0, told
  (card,) = root.rglob('README.md')
  assert '| fvu | 0.21 |' in card.read_text()
  assert '](pareto.png)' in card.read_text()
  assert (card.parent / 'pareto.png').read_bytes() == b'a picture'
  assert (card.parent / 'params.npz').is_file()
