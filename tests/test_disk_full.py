"""A disk that is full, at whatever is being written: told, and gone on from."""

import errno
import os
import pathlib
import subprocess
import sys

from helpers import commands
from helpers import disks
from helpers import sweeping
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import errors
from jumprelu_jax import plot
from jumprelu_jax import space
from jumprelu_jax import whole as whole_lib
from jumprelu_jax import writer

pytestmark = pytest.mark.slow  # whole commands
ROOT = pathlib.Path(__file__).parents[1]
SAE = 'jumprelu_l0_0.01'


@pytest.fixture(scope='module')
def run(tiny_run):
  return tiny_run.with_values(
    {
      'sweep.saes': ('jumprelu/l0/1e-2',),
      'activations.bucket_rows': 1000,
    }
  )


def sweep(run, workdir):
  plot.pareto(sweeping.run_sweep(run, workdir), workdir)


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('disk_full') / 'run'
  sweep(run, workdir)
  return commands.outcome(workdir)


def assert_same(workdir, wanted):
  table, arrays = commands.outcome(workdir)
  assert table == wanted[0]
  for key, array in wanted[1].items():
    np.testing.assert_array_equal(arrays[key], array)


# Every file that a sweep writes whole, and how often it is written before it
# is the one that does not fit.
SITES = [
  ('config.json', 0),
  ('config.json', 1),  # the SAE's
  ('inputs.json', 0),
  ('inputs.json', 1),
  ('sequences.json', 1),
  ('sequences.npy', 0),
  ('manifest.json', 0),
  ('shard_00001.npy', 0),
  ('shard_00001.origin.npy', 0),
  ('shard_00001.json', 0),
  ('metrics.jsonl', 0),
  ('seal.json', 0),  # a checkpoint's
  ('seal.json', 1),
  ('seal.json', 2),  # the trained SAE's
  ('seal.json', 3),  # the evaluated SAE's
  ('params.npz', 0),
  ('heldout.json', 1),
  ('heldout.npy', 0),
  ('latents.npz', 0),
  ('evaluation.json', 0),
  ('results.csv', 0),
  ('pareto.png', 0),
  ('pareto.pdf', 0),
]


@pytest.mark.parametrize(('name', 'before'), SITES, ids=str)
def test_every_file_that_is_written_whole(
  run, whole, tmp_path, monkeypatch, name, before
):
  fsync, seen = os.fsync, []

  def full(number):
    path = pathlib.Path(os.readlink(f'/proc/self/fd/{number}'))
    if path.name.startswith(f'{name}.'):  # and ends in .partial
      seen.append(path)
      if len(seen) > before:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(number)

  workdir = tmp_path / 'run'
  with monkeypatch.context() as patched:
    patched.setattr(whole_lib.os, 'fsync', full)
    with pytest.raises((OSError, errors.DiskFullError)) as caught:
      sweep(run, workdir)
  assert len(seen) > before
  assert 'no space' in str(caught.value).lower()
  assert str(tmp_path) in str(caught.value)
  assert not list(tmp_path.rglob('*.partial'))
  sweep(run, workdir)
  assert_same(workdir, whole)


@pytest.mark.parametrize('what', ['line', 'event'])
def test_records_that_are_appended(run, whole, tmp_path, monkeypatch, what):
  def full(self, *arguments, **content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  workdir = tmp_path / 'run'
  with monkeypatch.context() as patched:
    owner, name = (
      (writer.CurveWriter, 'write')
      if what == 'line'
      else (writer._Events, 'write')
    )
    patched.setattr(owner, name, full)
    with pytest.raises(OSError, match='No space left'):
      sweep(run, workdir)
  sweep(run, workdir)
  assert_same(workdir, whole)


def real_disk(run, disk):
  """Sweeps on a disk of ever more files; each is full at another of them."""
  full, whole = [], None
  for files in (*range(4, 64, 7), 100_000):
    disks.resize(disk, 100_000)
    workdir = disk / f'run_{files}'
    used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
    disks.resize(disk, used + files)
    try:
      sweep(run, workdir)
    except (OSError, errors.DiskFullError) as error:
      full.append(error)
      disks.resize(disk, 100_000)
      sweep(run, workdir)
    found = commands.outcome(workdir)
    whole = whole or found
    assert_same(workdir, whole)
  assert all('no space' in str(error).lower() for error in full), full
  assert len({str(error).split(':')[0] for error in full}) > 4, full


def test_a_real_disk_that_is_full_at_many_places(run, tmp_path):
  if os.geteuid() == 0:
    with disks.small_disk(
      tmp_path / 'disk', 400_000_000, files=100_000
    ) as disk:
      real_disk(run, disk)
    return
  command = ['unshare', '-Urm', sys.executable, '-m', 'pytest', '-q']
  inner = f'{__file__}::test_a_real_disk_that_is_full_at_many_places'
  done = subprocess.run(
    [*command, '-p', 'no:cacheprovider', inner],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_what_does_not_fit_is_refused_before_it_begins(
  run, tmp_path, monkeypatch
):
  monkeypatch.setattr(space.places.Local, 'free_bytes', lambda self: 100_000)
  with pytest.raises(errors.DiskFullError) as caught:
    sweep(run, tmp_path / 'run')
  said = str(caught.value)
  # By hand: 128 sequences of 16 tokens; 16 float32 and 3 int32 a row.
  assert f'tokens {128 * 16 * 4:,}' in said
  assert f'rows of resid_post of layer 1 {128 * 16 * (64 + 12):,}' in said
  # Three of: W_enc, W_dec, b_enc, log_threshold, b_dec, twice (Adam's second
  # moment), the latents' counts, and five numbers of 4 bytes.
  state = 4 * (2 * (2 * 16 * 32 + 2 * 32 + 16) + 32 + 5)
  assert f'checkpoints {3 * state:,}' in said
  assert '100,000 are free' in said
  assert 'too few' in said
  assert 'checkpoints_kept' in said


def test_what_is_there_is_not_needed_again(tmp_path, monkeypatch):
  (tmp_path / 'rows').write_bytes(bytes(900))
  monkeypatch.setattr(space.places.Local, 'free_bytes', lambda self: 100)
  space.check(tmp_path, {'rows': 600, 'SAEs': 400}, 'take less')
  with pytest.raises(
    errors.DiskFullError,
    match=r'1,001 bytes \(rows 601, SAEs 400\); 900 are there and 100 are '
    r'free: 1 too few.*, or take less',
  ):
    space.check(tmp_path, {'rows': 601, 'SAEs': 400}, 'take less')


def test_a_launcher_says_it_in_one_line(tmp_path):
  script = f"""
import sys
sys.argv = ['x']
from experiments import launch
def main():
  raise OSError(28, 'No space left on device', {str(tmp_path / 'a.csv')!r})
launch.run(main)
"""
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith(f'error: {tmp_path / "a.csv"} could not be written')
  assert 'give the same command again' in line


def test_orbax_without_space_is_a_full_disk(tmp_path):
  with (
    pytest.raises(errors.DiskFullError, match='free some space and give'),
    checkpoint._telling_of_disks(tmp_path / 'checkpoints'),
  ):
    raise ValueError('RESOURCE_EXHAUSTED: No space left on device [write]')
