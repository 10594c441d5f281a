"""A loss of power: what was written later is there only if the earlier is."""

import os

from helpers import power
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import seals
from jumprelu_jax import whole
from jumprelu_jax import writer
from jumprelu_jax.activations import formats


@pytest.fixture
def disk(tmp_path, monkeypatch):
  """A folder of which this process records what it syncs."""
  monkeypatch.setattr(os, 'fsync', os.fsync)  # and what replaces it
  root = tmp_path / 'disk'
  root.mkdir()
  found = power.Disk(root, tmp_path / 'kept')
  found.record()
  return found


def cut(disk):
  """Loses all that was not synced."""
  disk.lose(lambda: False)


def test_what_is_not_synced_is_lost(disk):
  path = disk.root / 'a.txt'
  path.write_text('never synced')
  folder = disk.root / 'b'
  folder.mkdir()
  (folder / 'c').write_text('in a folder that has no name on the disk')
  with (disk.root / 'd').open('w') as file:
    file.write('12')
    file.flush()
    os.fsync(file.fileno())
    file.write('34')
  cut(disk)
  # The root stands for the disk; what is in it has its name.
  assert {p.name for p in disk.root.iterdir()} == {'a.txt', 'b', 'd'}
  assert path.read_text() == ''
  assert not list(folder.iterdir())
  assert (disk.root / 'd').read_text() == '12'


def test_a_file_that_was_written_is_there(disk):
  path = disk.root / 'new' / 'folders' / 'a.json'
  whole.write_json(path, [1, 2])
  cut(disk)
  assert path.read_text() == '[\n  1,\n  2\n]\n'
  whole.write_json(path, 'other')
  cut(disk)
  assert path.read_text() == '"other"\n'
  assert [p.name for p in path.parent.iterdir()] == ['a.json']


def test_what_is_sealed_is_there(disk):
  """Also what was appended line by line."""
  folder = disk.root / 'sae'
  whole.make_folder(folder)
  curve = writer.CurveWriter(folder)
  for step in range(3):
    curve.write(step, {'loss': step / 3})
  curve.close()
  (folder / 'deep').mkdir()
  (folder / 'deep' / 'file').write_bytes(b'123')
  seals.write(folder, 'about', ['metrics.jsonl', 'deep/file'])
  cut(disk)
  assert seals.read(folder) == 'about'
  found = writer.read_curve(folder)
  assert found == [{'step': s, 'loss': s / 3} for s in range(3)]


def test_rows_of_tensorstore_are_there(disk):
  rows_ND = np.arange(3000, dtype='float32').reshape(300, 10)
  zarr = formats.get('zarr3')
  whole.make_folder(disk.root / 'store')
  path = disk.root / 'store' / 'rows.zarr'
  zarr.write(path, rows_ND)
  whole.write_json(disk.root / 'store' / 'rows.json', 'makes them a shard')
  cut(disk)
  found = zarr.open(path, (300, 10), np.dtype('float32'))
  np.testing.assert_array_equal(found[0:300], rows_ND)


@jax.jit
def some_state(value):
  return {'a': jnp.full((64, 64), value), 'n': jnp.int32(value)}


def test_the_last_checkpoints_are_there(disk, capsys):
  folder = disk.root / 'sae' / 'checkpoints'
  saves = checkpoint.Checkpointer(folder, keep=2)
  for step in (2, 4, 6):
    saves.save(step, some_state(float(step)), {'records': [step]})
  saves.close()
  cut(disk)
  again = checkpoint.Checkpointer(folder, keep=2)
  assert again.steps() == [4, 6]
  for step in (4, 6):
    found = again.restore(step, some_state(0.0))
    np.testing.assert_array_equal(found['a'], np.full((64, 64), float(step)))
    assert again.notes(step) == {'records': [step]}
  again.close()
  assert 'damaged' not in capsys.readouterr().err
  assert {path.name for path in folder.iterdir()} == {'4', '6'}


def test_one_that_was_being_saved_may_be_lost_and_the_one_before_is_not(disk):
  folder = disk.root / 'sae' / 'checkpoints'
  saves = checkpoint.Checkpointer(folder, keep=1)
  for step in (2, 4, 6):
    saves.save(step, some_state(float(step)))
  saves._manager.wait_until_finished()  # as a thread of Orbax has, at a cut
  cut(disk)
  again = checkpoint.Checkpointer(folder, keep=1)
  assert again.steps() == [4]
  again.close()
