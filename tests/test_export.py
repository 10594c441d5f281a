"""params.npz: Gemma Scope's layout, and refusal of what is not."""

from helpers import random_jumprelu
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import export


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'params.npz'
  export.save_npz(random_jumprelu.make().fold(3.0), path)
  return path


def test_layout_is_gemma_scopes(path):
  with np.load(path, allow_pickle=False) as file:
    found = {
      key: (value.shape, str(value.dtype)) for key, value in file.items()
    }
  assert found == {
    'W_enc': ((12, 40), 'float32'),
    'b_enc': ((40,), 'float32'),
    'W_dec': ((40, 12), 'float32'),
    'b_dec': ((12,), 'float32'),
    'threshold': ((40,), 'float32'),
  }


def test_numpy_alone_reads_the_file_as_gemma_scope_says(path):
  sae, x = (
    random_jumprelu.make().fold(3.0),
    np.asarray(random_jumprelu.make_rows()),
  )
  with np.load(path) as p:
    pre = x @ p['W_enc'] + p['b_enc']
    f = np.maximum(pre, 0) * (pre > p['threshold'])
    x_hat = f @ p['W_dec'] + p['b_dec']
  np.testing.assert_allclose(sae.decode(sae.encode(x)), x_hat, atol=1e-4)


def test_round_trip(path):
  x_BD = random_jumprelu.make_rows()
  want, got = random_jumprelu.make().fold(3.0), export.load_npz(path)
  np.testing.assert_array_equal(got.encode(x_BD), want.encode(x_BD))


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'garbage', 'pickle'])
def test_damaged_file_is_refused(path, damage):
  if damage == 'pickle':
    np.savez(path, W_enc=np.array([{}], dtype=object))
  else:
    whole = path.read_bytes()
    path.write_bytes(
      {
        'truncated': whole[: len(whole) // 2],
        'empty': b'',
        'garbage': b'x' * 99,
      }[damage]
    )
  with pytest.raises(errors.InputError, match='is not a whole params.npz'):
    export.load_npz(path)


def test_missing_array_and_wrong_shape_are_refused(path):
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **{k: v for k, v in arrays.items() if k != 'threshold'})
  with pytest.raises(errors.InputError, match='threshold'):
    export.load_npz(path)
  np.savez(path, **(arrays | {'threshold': arrays['threshold'][:-1]}))
  with pytest.raises(errors.InputError, match=r'expected \(40,\)'):
    export.load_npz(path)


def test_missing_file_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match='give a trained SAE'):
    export.load_npz(tmp_path / 'params.npz')
