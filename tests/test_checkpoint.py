"""Checkpoints: what was saved, whatever becomes of arrays and files."""

import functools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import errors

SHAPE = (512, 1024)


@functools.partial(jax.jit, donate_argnums=0)
def next_state(state):
  return {'a': state['a'] + 1, 'n': state['n'] + 1}


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
  state = {'a': jnp.zeros(SHAPE), 'n': jnp.int32(0)}
  saves = checkpoint.Checkpointer(tmp_path, keep=5)
  for step in range(1, 6):
    state = next_state(state)
    saves.save(step, state)
    for _ in range(20):  # in the same memory, while threads write
      state = next_state(state)
  saves.close()
  saves = checkpoint.Checkpointer(tmp_path, keep=5)
  assert saves.steps() == [1, 2, 3, 4, 5]
  for step in saves.steps():
    n = 21 * (step - 1) + 1
    restored = saves.restore(step, state)
    np.testing.assert_array_equal(restored['a'], np.full(SHAPE, n, 'float32'))
    assert int(restored['n']) == n
  saves.close()


def test_the_last_are_kept(tmp_path):
  saves = checkpoint.Checkpointer(tmp_path, keep=2)
  for step in (2, 4, 6):
    saves.save(step, {'a': jnp.full(3, float(step))})
  saves.close()
  again = checkpoint.Checkpointer(tmp_path)
  assert again.steps() == [4, 6]
  found = again.restore(4, {'a': jnp.zeros(3)})
  np.testing.assert_array_equal(found['a'], [4.0, 4.0, 4.0])
  again.close()


def test_what_was_just_saved_is_restored(tmp_path):
  saves = checkpoint.Checkpointer(tmp_path)
  saves.save(2, {'a': jnp.full(3, 2.0)}, {'at': 2})
  saves.save(4, {'a': jnp.full(3, 4.0)}, {'at': 4})  # waits for the first
  found = saves.restore(2, {'a': jnp.zeros(3)})
  np.testing.assert_array_equal(found['a'], [2.0, 2.0, 2.0])
  assert saves.notes(2) == {'at': 2}
  saves.close()


def some_state(value, size=64):
  return {'a': jnp.full((size, size), float(value)), 'n': jnp.int32(value)}


@pytest.fixture(scope='module')
def three(tmp_path_factory):
  """A folder of checkpoints of steps 2, 4, 6; not to be changed."""
  folder = tmp_path_factory.mktemp('saved') / 'checkpoints'
  saves = checkpoint.Checkpointer(folder, keep=3, identity={'seed': 0})
  for step in (2, 4, 6):
    saves.save(step, some_state(step), {'records': [step / 3]})
  saves.close()
  return folder


def files_of(folder, step):
  paths = (folder / str(step)).rglob('*')
  return sorted(path for path in paths if path.is_file())


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, seed=0):
  content = bytearray(path.read_bytes())
  place = np.random.default_rng(seed).integers(len(content))
  content[place] ^= 1 << int(place) % 8
  path.write_bytes(bytes(content))


DAMAGES = {'truncated': truncate, 'flipped': flip, 'removed': os.remove}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_newest_one_is_passed_over(three, tmp_path, capsys, damage):
  """Whichever of its files it is; aloud; and training may save it again."""
  names = [p.relative_to(three) for p in files_of(three, 6)]
  assert pathlib.Path('6/seal.json') in names
  assert len(names) >= 8
  # Of Orbax's own, which nothing is read from.
  own = ('6/commit_success.txt', '6/_CHECKPOINT_METADATA')
  for name in own:
    folder = tmp_path / name.replace('/', '_') / 'checkpoints'
    shutil.copytree(three, folder)
    DAMAGES[damage](folder / name)
    saves = checkpoint.Checkpointer(folder, keep=3, identity={'seed': 0})
    found = saves.restore(6, some_state(0))
    np.testing.assert_array_equal(found['a'], some_state(6)['a'])
    saves.close()
  capsys.readouterr()
  for name in [name for name in names if str(name) not in own]:
    folder = tmp_path / str(name).replace('/', '_') / 'checkpoints'
    shutil.copytree(three, folder)
    DAMAGES[damage](folder / name)
    saves = checkpoint.Checkpointer(folder, keep=3, identity={'seed': 0})
    said = capsys.readouterr().err
    assert f'WARNING: checkpoint {folder / "6"} is damaged' in said, name
    assert name.name in said
    assert 'goes on from the one before' in said
    assert saves.steps() == [2, 4], name
    assert (folder.with_name('checkpoints_damaged') / '6').is_dir()
    saves.close()
  saves = checkpoint.Checkpointer(folder, keep=3, identity={'seed': 0})
  found = saves.restore(4, some_state(0))
  np.testing.assert_array_equal(found['a'], some_state(4)['a'])
  assert saves.notes(4) == {'records': [4 / 3]}
  saves.save(6, some_state(6))
  saves.close()
  saves = checkpoint.Checkpointer(folder, keep=3, identity={'seed': 0})
  assert saves.steps() == [2, 4, 6]
  saves.close()


def died(*arguments):
  raise KeyboardInterrupt  # as good as a kill for what is on the disk


@pytest.mark.parametrize('gone', ['all but the seal', 'seal.json', 'nothing'])
def test_one_that_was_being_removed_is_not_damaged(
  three, tmp_path, capsys, monkeypatch, gone
):
  """Killed after it was renamed, with some of its files gone."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(three, folder)
  saves = checkpoint.Checkpointer(folder, keep=2)
  assert saves.steps() == [2, 4, 6]
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint, '_remove', died)
    with pytest.raises(KeyboardInterrupt):
      saves.save(8, some_state(8))
  removed = folder / '2.removed'
  for path in [p for p in removed.rglob('*') if p.is_file()]:
    if gone == path.name or (gone[0] == 'a' and path.name != 'seal.json'):
      path.unlink()
  capsys.readouterr()
  saves = checkpoint.Checkpointer(folder, keep=2)
  assert saves.steps() == [4, 6]
  saves.close()
  assert capsys.readouterr().err == ''
  assert {path.name for path in folder.iterdir()} == {'4', '6'}
  assert not folder.with_name('checkpoints_damaged').exists()


@pytest.mark.parametrize('gone', ['default/_METADATA', 'seal.json'])
def test_one_that_an_earlier_version_was_removing(
  three, tmp_path, capsys, gone
):
  """It removed file by file, under the checkpoint's own name."""
  folder = tmp_path / 'checkpoints'
  shutil.copytree(three, folder)
  (folder / '2' / gone).unlink()
  saves = checkpoint.Checkpointer(folder, keep=2)
  assert saves.steps() == [4, 6]
  saves.close()
  assert capsys.readouterr().err == ''
  assert {path.name for path in folder.iterdir()} == {'4', '6'}


def test_a_folder_that_is_removed_while_training_is_made_again(tmp_path):
  folder = tmp_path / 'sae' / 'checkpoints'
  saves = checkpoint.Checkpointer(folder, keep=1)
  saves.save(2, some_state(2))
  saves._manager.wait_until_finished()
  shutil.rmtree(tmp_path / 'sae')
  for step in (4, 6):
    saves.save(step, some_state(step))
  saves.close()
  saves = checkpoint.Checkpointer(folder, keep=1)
  assert saves.steps() == [6]
  saves.close()


def test_all_damaged_is_a_start_anew(three, tmp_path, capsys):
  folder = tmp_path / 'checkpoints'
  shutil.copytree(three, folder)
  for step in (2, 4, 6):
    truncate(files_of(folder, step)[-1])
  saves = checkpoint.Checkpointer(folder)
  assert saves.steps() == []
  assert capsys.readouterr().err.count('or from the start') == 3
  saves.close()


@pytest.mark.parametrize(
  ('identity', 'template', 'message'),
  [
    ({'seed': 1}, some_state(0), 'seed: 0 there, 1 now'),
    ({'seed': 0, 'k': 2}, some_state(0), 'k: nothing there, 2 now'),
    ({}, some_state(0), 'seed: 0 there, nothing now'),
    (
      {'seed': 0},
      some_state(0, size=32),
      r"a: 'float32\[64, 64\]' there, 'float32\[32, 32\]' now",
    ),
    (
      {'seed': 0},
      {**some_state(0), 'b': jnp.zeros(3)},
      r"b: nothing there, 'float32\[3\]' now",
    ),
  ],
)
def test_one_of_something_else_is_refused_with_the_difference(
  three, identity, template, message
):
  saves = checkpoint.Checkpointer(three, keep=3, identity=identity)
  with pytest.raises(errors.InputError, match=message) as caught:
    saves.restore(6, template)
  assert 'give another --workdir' in str(caught.value)
  saves.close()


def test_one_of_another_version_is_refused(three, monkeypatch):
  monkeypatch.setattr(checkpoint, '_VERSION', 7)
  saves = checkpoint.Checkpointer(three, keep=3, identity={'seed': 0})
  with pytest.raises(errors.InputError, match='version: 1 there, 7 now'):
    saves.restore(6, some_state(0))
  saves.close()


KILLED = """
import os, signal, sys
os.environ['JAX_PLATFORMS'] = 'cpu'
sys.path[:0] = ['tests', '.']
from jumprelu_jax import checkpoint, seals
from jax import numpy as jnp

def die(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)

saves = checkpoint.Checkpointer(sys.argv[1])
saves.save(2, {'a': jnp.full((64, 64), 2.0), 'n': jnp.int32(2)})
saves._manager.wait_until_finished()
seals.write = die
saves.save(4, {'a': jnp.full((64, 64), 4.0), 'n': jnp.int32(4)})
saves.close()
"""


def test_killed_before_the_seal_leaves_the_last_one(tmp_path):
  root = pathlib.Path(__file__).parents[1]
  folder = tmp_path / 'checkpoints'
  arguments = [sys.executable, '-c', KILLED, str(folder)]
  died = subprocess.run(arguments, cwd=root, stderr=subprocess.DEVNULL)
  assert died.returncode == -9
  assert len(list(folder.iterdir())) > 1  # it had begun
  saves = checkpoint.Checkpointer(folder)
  assert saves.steps() == [2]
  saves.save(4, some_state(4))
  saves.close()
  left = {path.name for path in folder.iterdir()}
  assert not any('tmp' in name for name in left), left
