"""Files that are damaged, or made to do harm: one error, and nothing else."""

import contextlib
import io
import pickle
import struct
import zipfile

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest
import safetensors.numpy

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.exchange import torch_zip
from jumprelu_jax.exchange import untrusted
from jumprelu_jax.sae import released

D, M = 3, 5
ARRAYS = {
  'W_enc': np.arange(D * M, dtype='float32').reshape(D, M),
  'b_enc': np.ones(M, 'float32'),
  'W_dec': np.ones((M, D), 'float32'),
  'b_dec': np.zeros(D, 'float32'),
  'threshold': np.ones(M, 'float32'),
}


def npz_bytes(arrays=None):
  file = io.BytesIO()
  np.savez(file, **(arrays or ARRAYS))
  return file.getvalue()


def torch_bytes(tmp_path):
  torch_zip.write(tmp_path / 'whole.pt', ARRAYS)
  return (tmp_path / 'whole.pt').read_bytes()


READERS = {
  '.npz': untrusted.read_npz,
  '.safetensors': untrusted.read_safetensors,
  '.pt': torch_zip.read,
}


def whole_of(suffix, tmp_path):
  if suffix == '.npz':
    return npz_bytes()
  if suffix == '.safetensors':
    return safetensors.numpy.save(ARRAYS)
  return torch_bytes(tmp_path)


@pytest.mark.parametrize('suffix', READERS)
def test_whole_files_are_read(tmp_path, suffix):
  path = tmp_path / f'whole{suffix}'
  path.write_bytes(whole_of(suffix, tmp_path))
  found = READERS[suffix](path)
  assert set(found) == set(ARRAYS)
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize('suffix', READERS)
@hypothesis.settings(
  max_examples=350,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_damage_is_one_error_or_harmless(tmp_path, suffix, data):
  """Cut off, or with bytes changed: an InputError, or the very same arrays.

  A byte may be of no importance (a date in a zip), or a number's; then what is
  read has the shapes and dtypes that the file says.
  """
  whole = bytearray(whole_of(suffix, tmp_path))
  if data.draw(strategies.booleans()):
    del whole[data.draw(strategies.integers(0, len(whole) - 1)) :]
  else:
    for _ in range(data.draw(strategies.integers(1, 4))):
      at = data.draw(strategies.integers(0, len(whole) - 1))
      whole[at] = data.draw(strategies.integers(0, 255))
  path = tmp_path / f'damaged{suffix}'
  path.write_bytes(whole)
  try:
    found = READERS[suffix](path)
  except errors.InputError:
    return
  size = sum(array.nbytes for array in found.values())
  assert size <= len(whole)


class Bomb:
  """Writes a file if it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (open, (str(self.path), 'w'))


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
  mark = tmp_path / 'ran'
  path = tmp_path / 'bomb.npz'
  np.savez(path, W_enc=np.array([Bomb(mark)], dtype=object))
  with pytest.raises(errors.InputError, match='object'):
    untrusted.read_npz(path)
  assert not mark.exists()


@pytest.mark.parametrize('protocol', range(2, 6))
def test_a_pickle_in_a_pt_is_not_run(tmp_path, protocol):
  mark, path = tmp_path / 'ran', tmp_path / 'bomb.pt'
  with zipfile.ZipFile(path, 'w') as archive:
    program = pickle.dumps({'W_enc': Bomb(mark)}, protocol)
    archive.writestr('archive/data.pkl', program)
  with pytest.raises(errors.InputError, match=r'it calls \w+.open'):
    torch_zip.read(path)
  assert not mark.exists()


def test_a_header_that_lies_is_not_believed(tmp_path):
  header = b'{"W":{"dtype":"F32","shape":[1000000,1000000],'
  header += b'"data_offsets":[0,4000000000000]}}'
  path = tmp_path / 'lies.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))
  with pytest.raises(errors.InputError, match='lies.safetensors is not'):
    untrusted.read_safetensors(path)
  path.write_bytes(struct.pack('<Q', 2**60) + header)
  with pytest.raises(errors.InputError, match='lies.safetensors is not'):
    untrusted.read_safetensors(path)


def npy_claiming(shape):
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  )
  return file.getvalue()


def test_an_npy_that_claims_more_than_it_has(tmp_path):
  path = tmp_path / 'lies.npz'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('W_enc.npy', npy_claiming((10**6, 10**6)) + bytes(64))
  with pytest.raises(errors.InputError, match='claims 4,000,000,000,000 bytes'):
    untrusted.read_npz(path)


def test_a_zip_that_inflates_is_refused(tmp_path, monkeypatch):
  """Before anything is inflated."""
  path = tmp_path / 'bomb.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('W_enc.npy', npy_claiming((1000,)) + bytes(4000))
  infos = zipfile.ZipFile.infolist

  def lying(self):
    found = infos(self)
    for info in found:
      info.file_size = 2**50
    return found

  monkeypatch.setattr(zipfile.ZipFile, 'infolist', lying)
  with pytest.raises(errors.InputError, match='claims 1,125,899,906,842,624'):
    untrusted.read_npz(path)


@pytest.mark.parametrize(
  ('name', 'array', 'message'),
  [
    ('threshold', np.full(M, np.nan, 'float32'), 'threshold has 5 numbers'),
    ('W_enc', np.full((D, M), np.inf, 'float32'), 'W_enc has 15 numbers'),
    ('b_dec', np.zeros(D + 1, 'float32'), 'b_dec has shape'),
    ('W_dec', np.ones((D, M), 'float32'), 'W_dec has shape'),
    ('b_enc', np.ones((M, 1), 'float32'), 'b_enc has shape'),
    ('extra', np.ones(1, 'float32'), 'expected W_enc, b_enc'),
    ('b_enc', np.array(['a'] * M), 'arrays of <U1 are not read'),
    ('b_enc', np.ones(M, 'complex64'), 'arrays of complex64 are not read'),
  ],
)
def test_what_is_no_sae_is_named(tmp_path, name, array, message):
  np.savez(tmp_path / 'params.npz', **(ARRAYS | {name: array}))
  with pytest.raises(errors.InputError, match=message):
    formats.load(tmp_path)


def test_a_threshold_may_be_infinite(tmp_path):
  threshold = np.array([np.inf, 1, 1, 1, 1], 'float32')
  np.savez(tmp_path / 'params.npz', **(ARRAYS | {'threshold': threshold}))
  sae, _ = formats.load(tmp_path)
  assert (np.asarray(sae.encode(np.ones((2, D), 'float32')))[:, 0] == 0).all()


@pytest.mark.parametrize('name', formats.FORMATS)
@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(data=strategies.data())
def test_damaged_folders_of_every_format(tmp_path_factory, name, data):
  """Any file of a folder cut off, or changed: one error, or an SAE."""
  folder = tmp_path_factory.mktemp('folder') / 'sae'
  maps = {k: v for k, v in ARRAYS.items() if k != 'threshold'}
  if name == 'sparsify':
    sae = released.TopKSAE(**maps, k=2)
  else:
    sae = released.SAE(**ARRAYS)
  formats.save(sae, details_lib.Details(), folder, name)
  path = data.draw(strategies.sampled_from(sorted(folder.iterdir())))
  whole = bytearray(path.read_bytes())
  at = data.draw(strategies.integers(0, len(whole) - 1))
  if data.draw(strategies.booleans()):
    del whole[at:]
  else:
    whole[at] = data.draw(strategies.integers(0, 255))
  path.write_bytes(whole)
  with contextlib.suppress(errors.InputError):
    formats.load(folder)
