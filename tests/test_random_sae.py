"""Random SAEs: their shape, and how often their latents fire."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jumprelu_jax import api
from jumprelu_jax import errors
from jumprelu_jax import export
from jumprelu_jax import random_sae
from jumprelu_jax.sae import released

ROOT = pathlib.Path(__file__).parent.parent


def rows(count=1000, size=16):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(count, size)) + 3).astype('float32')


def test_every_latent_fires_equally_often():
  x_ND = rows()
  sae = random_sae.draw(jax.random.key(0), x_ND, 300, l0=30)
  f_NM = np.asarray(sae.encode(x_ND))
  # 30 of 300 latents at a position: each at a tenth of the positions.
  np.testing.assert_array_equal((f_NM > 0).sum(0), 100)
  assert (np.asarray(sae.threshold) > 0).all()


@pytest.mark.parametrize('l0', [0, -1, 300, 1e9, float('nan'), float('inf')])
def test_an_l0_that_is_none_is_refused(l0):
  with pytest.raises(errors.InputError, match='an L0 of'):
    random_sae.draw(jax.random.key(0), rows(), 300, l0=l0)


def test_directions_are_random_units_and_centred():
  x_ND = rows()
  sae = random_sae.draw(jax.random.key(0), x_ND, 300, l0=30)
  W = np.asarray(sae.W_dec)
  assert W.shape == (300, 16)
  np.testing.assert_allclose(np.linalg.norm(W, axis=1), 1, rtol=1e-5)
  np.testing.assert_array_equal(np.asarray(sae.W_enc), W.T)
  cosine = np.abs(W @ W.T - np.eye(300))
  # Of random directions of 16 dimensions a cosine's deviation is a quarter.
  assert cosine.std() < 0.25
  np.testing.assert_allclose(sae.b_dec, x_ND.mean(0), rtol=1e-5)
  np.testing.assert_allclose(sae.b_enc, -W @ x_ND.mean(0), rtol=1e-4, atol=1e-4)
  other = random_sae.draw(jax.random.key(1), x_ND, 300, l0=30)
  assert np.abs(np.asarray(other.W_dec) - W).max() > 0.1


@pytest.mark.parametrize(
  ('l0', 'match'),
  [(0.1, 'Use more positions'), (300, 'Use more'), (200, 'less than half')],
)
def test_an_l0_that_cannot_be_is_refused(l0, match):
  with pytest.raises(errors.InputError, match=match):
    random_sae.draw(jax.random.key(0), rows(), 300, l0)


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', *map(str, args)],
    cwd=ROOT, capture_output=True, text=True,
  )  # fmt: skip


@pytest.mark.slow
def test_the_command_writes_what_evaluation_opens(tiny_run, tmp_path):
  like, out, text = (tmp_path / name for name in ('like', 'out', 'text.txt'))
  like.mkdir()
  # Letters by chance: where text repeats itself activations are equal, and no
  # threshold parts them.
  letters = np.random.default_rng(0).choice(list('abcdefghijklm .'), 2000)
  text.write_text(''.join(letters))
  run_of_like = tiny_run.with_values({'text.heldout': str(text)})
  (like / 'config.json').write_text(json.dumps(run_of_like.to_dict()))
  trained = released.SAE(
    *map(np.float32, (np.ones((16, 32)), np.ones(32), np.ones((32, 16)))),
    np.ones(16, 'float32'),
    np.ones(32, 'float32'),
  )
  export.save_npz(trained, like / 'params.npz')
  (like / 'evaluation.json').write_text(json.dumps({'l0': 4.0}))
  done = run('experiments.random_sae', f'--like={like}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  sae = api.load_sae(out)
  assert (sae.details.trained_as, sae.details.l0) == ('random', 4.0)
  assert sae.weights.W_enc.shape == (16, 32)
  assert (sae.site.name, sae.site.layer) == ('resid_post', 1)
  # All of the held-out text was used, so the L0 is that of evaluation.
  report = tmp_path / 'rows.json'
  done = run('experiments.evaluate', f'--sae={out}', f'--json={report}')
  assert done.returncode == 0, done.stderr
  (row,) = json.loads(report.read_text())
  assert row['l0'] == pytest.approx(4, abs=0.02)
  again = run('experiments.random_sae', f'--like={like}', f'--out={out}')
  assert again.returncode == 2
  assert 'give a new folder' in again.stderr
