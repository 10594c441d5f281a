"""The store: what is written is there, what is damaged is told, a full disk."""

import dataclasses
import json
import shutil

from helpers import small_store
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.activations import store as store_lib


@pytest.fixture(params=['npy', 'zarr3'])
def description(request):
  return small_store.describe(format=request.param)


@pytest.mark.parametrize('dtype', small_store.DTYPES)
@pytest.mark.parametrize('place', ['local', 'url'])
@pytest.mark.parametrize('form', ['npy', 'zarr3'])
def test_store_holds_what_was_written(tmp_path, form, place, dtype):
  if place == 'url' and form == 'npy':
    return  # refused: tests/test_formats.py
  folder = tmp_path / 'store'
  if place == 'url':
    folder = f'memory://{form}-{dtype}/a/store'
  description = small_store.describe(format=form, dtype=dtype)
  small_store.write(folder, description)
  store = store_lib.Store(folder)
  assert store.is_complete
  assert store.missing == ()
  assert store.description == description
  assert store.rows_per_shard == small_store.SIZES
  assert store.num_rows == 858
  assert store.d_model == small_store.D
  small_store.assert_holds(store, small_store.ALL)
  assert store.verify() == []


def test_dropped_rows_count_in_the_median_norm(tmp_path):
  description = small_store.describe(dtype='float32', num_shards=1, d_model=2)
  rows_ND = np.diag([3.0, 1.0]).astype('float32')[[0, 1, 1, 0]]
  origin_N3 = np.zeros((4, 3), np.int32)
  store_lib.write_shard(tmp_path, description, 0, rows_ND, origin_N3, 3)
  store_lib.write_manifest(tmp_path, description)
  # Norms 1, 1, 3, 3 and three larger ones.
  assert store_lib.Store(tmp_path).median_norm() == 3


@pytest.mark.parametrize('dtype', small_store.DTYPES)
def test_statistics_are_those_of_the_rows(tmp_path, dtype):
  description = small_store.describe(dtype=dtype)
  small_store.write(tmp_path, description)
  shards = [
    small_store.some_rows(i, description)[0].astype(np.float64)
    for i in small_store.ALL
  ]
  every_ND = np.concatenate(shards)
  store = store_lib.Store(tmp_path)
  np.testing.assert_allclose(
    store.scale, np.sqrt((shards[0] ** 2).sum(1).mean()), rtol=1e-12
  )
  np.testing.assert_allclose(
    store.median_norm(), np.median(np.linalg.norm(shards[0], axis=1)), rtol=1e-6
  )
  np.testing.assert_allclose(
    store.mean_squared_norm, (every_ND**2).sum(1).mean(), rtol=1e-12
  )
  np.testing.assert_allclose(store.mean_D, every_ND.mean(0), rtol=1e-12)
  assert store.mean_D.dtype == np.float64


def test_manifest_says_it_in_plain_json(tmp_path):
  description = small_store.describe(d_model=2, dtype='float32', num_shards=3)
  pairs = {0: [[3.0, 4.0], [0.0, 5.0]], 2: [[1.0, 0.0]]}
  for index, rows in pairs.items():
    origin_N3 = np.zeros((len(rows), 3), np.int32)
    rows_ND = np.array(rows, np.float32)
    store_lib.write_shard(tmp_path, description, index, rows_ND, origin_N3, 1)
  store_lib.write_manifest(tmp_path, description)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['complete'] is False
  assert manifest['scale'] == 5.0  # root of (25 + 25) / 2
  assert manifest['mean_squared_norm'] == 17.0  # (25 + 25 + 1) / 3
  assert manifest['mean'] == [4 / 3, 3.0]
  assert manifest['outlier_rate'] == 0.4  # 2 of 3 + 2
  assert [s['index'] for s in manifest['shards']] == [0, 2]
  assert [s['rows'] for s in manifest['shards']] == [2, 1]
  assert manifest['description']['special_ids'] == [0, 1]
  assert manifest['description']['max_norm_multiple'] == 10.0


def test_checksum_is_of_the_rows_and_not_of_the_format(tmp_path):
  sidecars = []
  for form in ('npy', 'zarr3'):
    small_store.write(tmp_path / form, small_store.describe(format=form), [3])
    sidecars.append((tmp_path / form / 'shard_00003.json').read_text())
  assert sidecars[0] == sidecars[1]
  assert json.loads(sidecars[0])['rows_bytes'] == 600 * small_store.D * 2


def test_incomplete_store_opens_and_says_what_is_missing(tmp_path, description):
  small_store.write(tmp_path, description, [3, 0])
  store = store_lib.Store(tmp_path)
  assert not store.is_complete
  assert store.missing == (1, 2)
  assert store.rows_per_shard == (257, 0, 0, 600)
  small_store.assert_holds(store, [0, 3])
  for ask in (store.open, store.origin):
    with pytest.raises(errors.InputError, match='makes those that are missing'):
      ask(2)
  small_store.write(tmp_path, description, [1, 2])
  assert store_lib.Store(tmp_path).is_complete


def test_removed_shard_is_missing_whatever_the_manifest_says(
  tmp_path, description
):
  small_store.write(tmp_path, description)
  store_lib.remove_shard(tmp_path, 3)
  assert not list(tmp_path.glob('shard_00003*'))
  assert store_lib.Store(tmp_path).missing == (3,)
  small_store.write(tmp_path, description, [3])
  small_store.assert_holds(store_lib.Store(tmp_path), small_store.ALL)


def test_shard_without_sidecar_is_no_shard(tmp_path, description):
  """As after SIGKILL: rows are there, whole or in part, but no sidecar."""
  small_store.write(tmp_path, description)
  (tmp_path / 'shard_00000.json').unlink()
  partial = tmp_path / 'shard_00000.npy.host-1.partial'
  partial.write_bytes(b'half')
  small_store.rows_file(tmp_path, 0).write_bytes(b'half')
  assert store_lib.Store(tmp_path).missing == (0,)
  small_store.write(tmp_path, description, [0])
  assert not partial.exists()
  small_store.assert_holds(store_lib.Store(tmp_path), small_store.ALL)


def flip(path, where):
  raw = bytearray(path.read_bytes())
  raw[where] ^= 1
  path.write_bytes(raw)


REMEDY = (
  r'delete shard_00003\.\* and run experiments.harvest again: '
  'only it is made again'
)


def test_flipped_byte_is_told_once_the_shard_is_read(tmp_path, description):
  small_store.write(tmp_path, description)
  flip(small_store.rows_file(tmp_path, 3), 2000)
  store = store_lib.Store(tmp_path)
  with pytest.raises(errors.InputError, match=REMEDY) as caught:
    store.open(3)[0:600]
  assert 'shard_00003.' in str(caught.value).split(' is damaged')[0]
  assert 'expected' in str(caught.value)
  assert 'got' in str(caught.value)
  small_store.assert_holds(store, [0, 1, 2])
  assert [index for index, _ in store.verify()] == [3]
  # The remedy is true.
  for path in tmp_path.glob('shard_00003.*'):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert store_lib.Store(tmp_path).missing == (3,)
  small_store.write(tmp_path, description, [3])
  assert store_lib.Store(tmp_path).verify() == []


def test_npy_is_checked_once(tmp_path):
  """A shard that was checked is not read again to be opened."""
  small_store.write(tmp_path, small_store.describe())
  store = store_lib.Store(tmp_path)
  store.open(3)
  flip(small_store.rows_file(tmp_path, 3), 2000)
  store.open(3)
  with pytest.raises(errors.InputError, match='checksum'):
    store_lib.Store(tmp_path).open(3)
  assert [index for index, _ in store.verify()] == [3]


def test_truncated_rows_are_told(tmp_path, description):
  small_store.write(tmp_path, description)
  path = small_store.rows_file(tmp_path, 3)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(errors.InputError, match=REMEDY):
    store_lib.Store(tmp_path).open(3)


@pytest.mark.parametrize('damage', ['flip', 'cut', 'empty', 'gone', 'other'])
def test_damaged_origin_is_told(tmp_path, description, damage):
  small_store.write(tmp_path, description)
  path = tmp_path / 'shard_00003.origin.npy'
  if damage == 'flip':
    flip(path, 500)
  elif damage == 'gone':
    path.unlink()
  elif damage == 'other':
    np.save(path, np.zeros((599, 3), np.int32))
  else:
    path.write_bytes(path.read_bytes()[:-5] if damage == 'cut' else b'')
  store = store_lib.Store(tmp_path)
  with pytest.raises(errors.InputError, match=REMEDY):
    store.origin(3)
  assert [index for index, _ in store.verify()] == [3]


@pytest.mark.parametrize('content', ['', '{"rows": 600}', '[]', '{'])
def test_damaged_sidecar_is_told(tmp_path, description, content):
  small_store.write(tmp_path, description)
  (tmp_path / 'shard_00003.json').write_text(content)
  with pytest.raises(errors.InputError, match=r'shard_00003\.json.*' + REMEDY):
    store_lib.Store(tmp_path)


def test_no_store_other_version_and_damaged_manifest_are_told(tmp_path):
  with pytest.raises(errors.InputError, match='run experiments.harvest first'):
    store_lib.Store(tmp_path / 'nothing')
  with pytest.raises(errors.InputError, match='run experiments.harvest first'):
    store_lib.Store('memory://nothing/at/all')
  manifest = tmp_path / 'manifest.json'
  manifest.write_text('{"d_model": 5, "rows_per_shard": [3]}')
  with pytest.raises(errors.InputError, match='harvest into another folder'):
    store_lib.Store(tmp_path)
  for content in ('', '[]', '{"version": 1}'):
    manifest.write_text(content)
    with pytest.raises(errors.InputError, match='makes no shard that is there'):
      store_lib.Store(tmp_path)


def test_store_of_something_else_is_told_field_by_field(tmp_path, description):
  small_store.write(tmp_path, description)
  store = store_lib.Store(tmp_path)
  store.check_is_of(description)
  other = dataclasses.replace(description, layer=2, special_ids=(0,))
  with pytest.raises(errors.InputError, match='name another folder') as caught:
    store.check_is_of(other)
  assert 'layer: 1 there, 2 wanted' in str(caught.value)
  assert 'special_ids: (0, 1) there, (0,) wanted' in str(caught.value)
  for field in dataclasses.fields(description):
    name = field.name
    said = f'{name}: ' in str(caught.value)
    assert said == (name in ('layer', 'special_ids')), name


def test_store_of_no_rows_has_no_scale(tmp_path):
  description = small_store.describe(num_shards=2)
  store_lib.write_manifest(tmp_path, description)
  store = store_lib.Store(tmp_path)
  assert store.missing == (0, 1)
  for name in ('scale', 'mean_D', 'mean_squared_norm'):
    with pytest.raises(errors.InputError, match='on more text'):
      getattr(store, name)


def test_rows_that_are_not_finite_are_refused(tmp_path, description):
  rows_ND, origin_N3 = small_store.some_rows(3, description)
  for value in (np.nan, np.inf):
    rows_ND[500, 2] = value
    with pytest.raises(errors.InputError, match='check its weights'):
      store_lib.write_shard(tmp_path, description, 3, rows_ND, origin_N3, 0)
  assert list(tmp_path.iterdir()) == []
