"""Shards on disk: what is written is read, and what is damaged is told."""

import ml_dtypes
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import whole
from jumprelu_jax.activations import formats
from jumprelu_jax.activations import places

DTYPES = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))
# Sizes around a block, several blocks, and a short last block.
SIZES = (0, 1, 255, 256, 257, 512, 1000)
D = 5


@pytest.fixture(params=['npy', 'zarr3'])
def form(request):
  return formats.FORMATS[request.param]


def some_rows(size, dtype, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((size, D)).astype(dtype)


def bits(rows_ND):
  return np.ascontiguousarray(rows_ND).view(np.uint8).tolist()


def content_path(form, path):
  """The file that holds the rows."""
  return path if form.suffix == '.npy' else path / 'c' / '0' / '0'


def written(form, tmp_path, size=1000, dtype=DTYPES[1]):
  """Returns the path of a shard, its rows and what `open` needs to know."""
  rows_ND = some_rows(size, dtype)
  path = tmp_path / f'shard_00003{form.suffix}'
  form.write(path, rows_ND)
  return path, rows_ND, ((size, D), dtype)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('size', SIZES)
def test_what_is_written_is_read_bit_for_bit(form, tmp_path, size, dtype):
  path, rows_ND, known = written(form, tmp_path, size, dtype)
  reader = form.open(path, *known)
  assert len(reader) == size
  rng = np.random.default_rng(size)
  ends = np.sort(rng.integers(0, size + 1, (20, 2)))
  for start, stop in [(0, size), (0, 0), *ends.tolist()]:
    block_ND = reader[start:stop]
    assert block_ND.dtype == dtype
    assert block_ND.shape == (stop - start, D)
    assert block_ND.flags.c_contiguous
    assert bits(block_ND) == bits(rows_ND[start:stop])


def test_slices_read_together_are_those_read_one_by_one(form, tmp_path):
  path, rows_ND, known = written(form, tmp_path)
  slices = [slice(256, 512), slice(0, 3), slice(900, 1000), slice(5, 5)]
  together = formats.read_together(form.open(path, *known), slices)
  for block_ND, where in zip(together, slices, strict=True):
    assert bits(block_ND) == bits(rows_ND[where])


def test_zeros_are_stored(form, tmp_path):
  path = tmp_path / f'zeros{form.suffix}'
  form.write(path, np.zeros((600, D), np.float32))
  assert content_path(form, path).stat().st_size > 600 * D * 4
  reader = form.open(path, (600, D), DTYPES[0])
  np.testing.assert_array_equal(reader[0:600], np.zeros((600, D)))


def test_rewritten_shard_reads_as_the_new_one(form, tmp_path):
  path, _, known = written(form, tmp_path)
  form.open(path, *known)[0:1000]
  other_ND = some_rows(1000, known[1], seed=1)
  form.write(path, other_ND)
  assert bits(form.open(path, *known)[0:1000]) == bits(other_ND)


def test_npy_is_an_ordinary_file_of_bits(tmp_path):
  rows_ND = np.array([[1.0, -2.0]], ml_dtypes.bfloat16)
  formats.FORMATS['npy'].write(tmp_path / 'a.npy', rows_ND)
  # 1.0 is sign 0, exponent 127; -2.0 is sign 1, exponent 128; no mantissa.
  np.testing.assert_array_equal(
    np.load(tmp_path / 'a.npy'), np.array([[0x3F80, 0xC000]], np.uint16)
  )


@pytest.mark.parametrize('lost', [1, 2000, 10_100, 10**6])
def test_truncated_file_is_told(form, tmp_path, lost):
  path, _, known = written(form, tmp_path)
  content = content_path(form, path)
  whole = content.read_bytes()
  content.write_bytes(whole[: max(0, len(whole) - lost)])
  with pytest.raises(
    errors.InputError, match=r'delete shard_00003\.\* and run'
  ):
    form.open(path, *known)


def test_longer_file_is_told(form, tmp_path):
  path, _, known = written(form, tmp_path)
  content = content_path(form, path)
  content.write_bytes(content.read_bytes() + bytes(40))
  with pytest.raises(errors.InputError, match='shard_00003.*is damaged'):
    form.open(path, *known)


def test_missing_file_is_told(form, tmp_path):
  path, _, known = written(form, tmp_path)
  content_path(form, path).unlink()
  with pytest.raises(errors.InputError, match='missing.*only it is made again'):
    form.open(path, *known)
  with pytest.raises(errors.InputError, match='missing'):
    form.open(tmp_path / f'shard_00009{form.suffix}', *known)


@pytest.mark.parametrize(
  ('shape', 'dtype', 'told'),
  [
    ((999, D), DTYPES[1], r'expected \[999, 5\].*got \[1000, 5\]'),
    ((1001, D), DTYPES[1], r'expected \[1001, 5\]'),
    ((1000, D + 1), DTYPES[1], r'expected \[1000, 6\]'),
    ((1000, D), DTYPES[0], r'of float32.*got \[1000, 5\]'),
  ],
  ids=['shorter', 'longer', 'wider', 'dtype'],
)
def test_other_rows_than_expected_are_told(form, tmp_path, shape, dtype, told):
  path, *_ = written(form, tmp_path)
  with pytest.raises(errors.InputError, match=told):
    form.open(path, shape, dtype)


def test_zarr3_tells_a_flipped_bit_when_its_block_is_read(tmp_path):
  form = formats.FORMATS['zarr3']
  path, rows_ND, known = written(form, tmp_path)
  content = content_path(form, path)
  raw = bytearray(content.read_bytes())
  # Blocks are 256 rows of 5 bfloat16 and 4 bytes of CRC; this is in block 1.
  raw[256 * D * 2 + 4 + 100] ^= 1
  content.write_bytes(raw)
  reader = form.open(path, *known)
  assert bits(reader[0:256]) == bits(rows_ND[:256])
  with pytest.raises(errors.InputError, match='shard_00003.zarr is damaged'):
    reader[300:301]
  with pytest.raises(errors.InputError, match=r'delete shard_00003\.\*'):
    reader[0:1000]


def test_leftover_of_a_killed_writer_is_no_shard(form, tmp_path):
  partial = tmp_path / 'shard_00003.npy.host-1.partial'
  partial.write_bytes(b'half of it')
  path, rows_ND, known = written(form, tmp_path)
  assert bits(form.open(path, *known)[0:1000]) == bits(rows_ND)


def test_failed_write_leaves_the_old_content_and_no_litter(tmp_path):
  path = tmp_path / 'a'
  path.write_bytes(b'old')

  def fail():
    with whole.replacing(path) as file:
      file.write(b'new')
      assert path.read_bytes() == b'old'
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert path.read_bytes() == b'old'
  assert [p.name for p in tmp_path.iterdir()] == ['a']


def test_zarr3_goes_to_a_url(tmp_path):
  form = formats.FORMATS['zarr3']
  rows_ND = some_rows(700, DTYPES[1])
  url = f'memory://{tmp_path.name}/shard_00000.zarr'
  form.write(url, rows_ND)
  assert bits(form.open(url, rows_ND.shape, DTYPES[1])[:]) == bits(rows_ND)


def test_npy_refuses_a_url():
  with pytest.raises(errors.InputError, match='use format zarr3'):
    formats.FORMATS['npy'].write('gs://bucket/a.npy', some_rows(1, DTYPES[0]))


def test_unknown_format_and_address_are_told():
  with pytest.raises(errors.InputError, match=r"\['npy', 'zarr3'\]"):
    formats.get('parquet')
  with pytest.raises(errors.InputError, match='gs://bucket/folder'):
    places.at('nothing://bucket')
