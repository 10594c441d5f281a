"""Writers that are killed, and disks that are full: nothing is lost."""

import os
import pathlib
import shutil
import subprocess
import sys

from helpers import disks
from helpers import small_store
import pytest

from jumprelu_jax import errors
from jumprelu_jax.activations import places
from jumprelu_jax.activations import store as store_lib

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(params=['npy', 'zarr3'])
def description(request):
  return small_store.describe(format=request.param)


KILLED = """
import os, signal, sys
import numpy as np
sys.path[:0] = ['tests', '.']
from helpers import small_store
from jumprelu_jax.activations import {module}

def die(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)

{module}.{function} = die
small_store.write(sys.argv[1], small_store.describe(format=sys.argv[2]), [3])
"""


@pytest.mark.parametrize(
  ('module', 'function'),
  [('places', 'os.replace'), ('sidecars', 'write')],
  ids=['before a file takes its place', 'before the sidecar'],
)
def test_killed_writer_leaves_a_store_that_goes_on(
  tmp_path, description, module, function
):
  small_store.write(tmp_path, description, [0, 1, 2])
  script = KILLED.format(module=module, function=function)
  arguments = [sys.executable, '-c', script, str(tmp_path), description.format]
  died = subprocess.run(arguments, cwd=ROOT)
  assert died.returncode == -9
  assert list(tmp_path.glob('shard_00003*'))  # it had begun
  store = store_lib.Store(tmp_path)
  assert store.missing == (3,)
  small_store.assert_holds(store, [0, 1, 2])
  small_store.write(tmp_path, description, [3])
  small_store.assert_holds(store_lib.Store(tmp_path), small_store.ALL)
  assert not list(tmp_path.glob('shard*.partial'))


def full_disk(folder, form):
  """The test proper: a real disk that is full in the middle of a shard."""
  description = small_store.describe(
    format=form, d_model=128, dtype='float32', num_shards=3
  )

  def write_big(index):
    # 700 rows of 512 bytes: 350 KiB, so that two of them fit and not a third.
    rows_ND, origin_N3 = small_store.some_rows(index, description, size=700)
    store_lib.write_shard(folder, description, index, rows_ND, origin_N3, 0)
    store_lib.write_manifest(folder, description)
    return rows_ND

  ballast = folder / 'ballast'
  ballast.write_bytes(bytes(600_000))
  rows = [write_big(0), write_big(1)]
  before = sorted(path.name for path in folder.iterdir())
  with pytest.raises(errors.DiskFullError) as caught:
    write_big(2)
  message = str(caught.value)
  free = shutil.disk_usage(folder).free
  assert 'shard_00002 (of 3)' in message
  assert str(folder) in message
  assert 'No space left on device' in message
  assert '366,928 bytes' in message  # 358,400 of rows, 8,528 of origins
  assert f'{free:,} are free' in message
  assert 'written before are complete and usable' in message
  assert 'give the same command again: it goes on from there' in message
  # Nothing of the shard is left, and those before it are as they were.
  assert sorted(path.name for path in folder.iterdir()) == before
  store = store_lib.Store(folder)
  assert store.missing == (2,)
  assert store.verify() == []
  for index in (0, 1):
    assert store.open(index)[:700].tobytes() == rows[index].tobytes()
  # The same command again, after space is freed.
  ballast.unlink()
  rows.append(write_big(2))
  store = store_lib.Store(folder)
  assert store.is_complete
  assert store.verify() == []
  for index in range(3):
    assert store.open(index)[:700].tobytes() == rows[index].tobytes()


@pytest.mark.parametrize('form', ['npy', 'zarr3'])
def test_full_disk_loses_nothing(tmp_path, form):
  if os.geteuid() == 0:
    with disks.small_disk(tmp_path / 'disk', 1_700_000) as folder:
      full_disk(folder, form)
    return
  # Not root: the same in a namespace of our own, where we are and may mount.
  command = ['unshare', '-Urm', sys.executable, '-m', 'pytest', '-q']
  inner = f'{__file__}::test_full_disk_loses_nothing[{form}]'
  basetemp = f'--basetemp={tmp_path / "inner"}'
  done = subprocess.run(
    [*command, '-p', 'no:cacheprovider', basetemp, inner],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, (
    f'{" ".join(command[:2])} gave no small disk, or the test failed there: '
    f'{done.stderr}{done.stdout}'
  )


def test_full_disk_keeps_the_old_manifest(tmp_path, description, monkeypatch):
  small_store.write(tmp_path, description)
  before = (tmp_path / 'manifest.json').read_bytes()

  def full(number):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(places.os, 'fsync', full)
  with pytest.raises(errors.DiskFullError, match='manifest.json could not'):
    store_lib.write_manifest(tmp_path, description)
  assert (tmp_path / 'manifest.json').read_bytes() == before


def test_another_failure_to_write_is_not_called_a_full_disk(
  tmp_path, description, monkeypatch
):
  def fail(place, name, content):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(places.Local, 'write', fail)
  with pytest.raises(errors.InputError, match='Input/output error') as caught:
    small_store.write(tmp_path, description, [3])
  assert not isinstance(caught.value, errors.DiskFullError)
  assert list(tmp_path.iterdir()) == []
