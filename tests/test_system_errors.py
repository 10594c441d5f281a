"""Errors of the operating system: one line each, and nothing is lost."""

import errno
import os
import pathlib
import shutil
import subprocess
import time

from helpers import commands
from helpers import disks
import numpy as np
import pytest

from experiments import launch
from jumprelu_jax import errors
from jumprelu_jax import seals

ROOT = pathlib.Path(__file__).parents[1]
CODES = (errno.EIO, errno.ESTALE, errno.EROFS, errno.EACCES, errno.ENOENT)


@pytest.mark.parametrize('code', CODES, ids=lambda code: errno.errorcode[code])
def test_it_is_one_line_with_the_file_and_the_reason(code):
  line = launch._line(OSError(code, os.strerror(code), '/data/rows.npy'))
  assert line.startswith(f'/data/rows.npy failed ({os.strerror(code)}). What ')
  assert 'give the same command again' in line


def raised(error, *, cause=None):
  """The error as it is when raised from, or while, another was handled."""
  try:
    try:
      raise cause
    except Exception:
      raise error  # noqa: B904 (some libraries do not say from what)
  except Exception as found:
    return found


def test_it_is_found_behind_what_a_library_raises():
  stale = OSError(errno.ESTALE, os.strerror(errno.ESTALE), '/nfs/a')
  found = errors.system_error(raised(ValueError('bad zip'), cause=stale))
  assert found is stale
  quoted = ValueError(
    'DATA_LOSS: Error writing "/x/d/1": Input/output error [OS error 5: EIO]'
  )
  assert errors.system_error(quoted).errno == errno.EIO
  wrapped = raised(RuntimeError('save failed'), cause=quoted)
  assert errors.system_error(wrapped).errno == errno.EIO


def test_a_defect_keeps_its_traceback():
  missing = FileNotFoundError(errno.ENOENT, 'No such file', '/a')
  assert launch._line(KeyError('x')) == ''
  # A file that is not there is often no error at all.
  assert launch._line(raised(KeyError('x'), cause=missing)) == ''


def test_a_link_to_nothing_is_told(tmp_path):
  link = tmp_path / 'link'
  link.symlink_to(tmp_path / 'nowhere')
  line = launch._line(FileExistsError(errno.EEXIST, 'File exists', str(link)))
  assert f'it is a link to {tmp_path / "nowhere"}, which is not there' in line


def test_a_seal_that_cannot_be_read_is_not_taken_for_none(
  tmp_path, monkeypatch
):
  """Else an SAE would be trained again beside one that is there."""
  (tmp_path / 'a').write_text('x')
  seals.write(tmp_path, 'about')
  assert seals.is_sealed(tmp_path, 'a')
  assert not seals.is_sealed(tmp_path / 'none', 'a')

  def fails(self):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

  monkeypatch.setattr(pathlib.Path, 'read_bytes', fails)
  with pytest.raises(OSError, match='Input/output error'):
    seals.is_sealed(tmp_path, 'a')


def refused(*arguments, cwd=ROOT):
  """Returns the one line that a sweep ends with."""
  done = subprocess.run(
    commands.command('sweep', *arguments),
    cwd=cwd,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    capture_output=True,
  )
  said = done.stderr.decode(errors='replace')
  assert done.returncode == 2, said
  (line,) = said.strip().splitlines()
  assert line.startswith('error: ')
  return line


@pytest.mark.slow
def test_names_that_no_run_may_have(overrides, tmp_path):
  url = refused(*overrides, '--workdir=gs://bucket/run')
  assert '--workdir=gs://bucket/run is a URL, expected a folder' in url
  assert not (ROOT / 'gs:').exists()
  name = os.fsdecode(bytes(tmp_path) + b'/r\xffn')
  assert 'is not UTF-8' in refused(*overrides, f'--workdir={name}')
  os.mkdir(name)
  assert 'is not UTF-8' in refused(*overrides, '--workdir=run', cwd=name)
  link = tmp_path / 'link'
  link.symlink_to(tmp_path / 'nowhere')
  assert f'it is a link to {tmp_path}' in refused(
    *overrides, f'--workdir={link}'
  )


def begun(arguments, curve):
  """Starts a sweep; returns it when it trains."""
  process = subprocess.Popen(
    commands.command('sweep', *arguments),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 240
  while not (curve.exists() and curve.read_text().count('\n') > 2):
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.005)
  return process


def same_as_undisturbed(overrides, workdir, whole):
  """Gives the command again, and compares with a run left alone."""
  for folder in (workdir, whole):
    done = commands.run('sweep', *overrides, f'--workdir={folder}')
    assert done.returncode == 0, done.stderr
  got, want = map(commands.outcome, (workdir, whole))
  assert got[0] == want[0]
  for key, array in want[1].items():
    np.testing.assert_array_equal(got[1][key], array)


@pytest.mark.slow
def test_a_folder_that_is_removed_in_training(overrides, tmp_path):
  overrides = [*overrides, '--config.train.steps=400']
  workdir = tmp_path / 'run'
  sae = workdir / 'jumprelu_l0_0.1'
  process = begun([*overrides, f'--workdir={workdir}'], sae / 'metrics.jsonl')
  shutil.rmtree(sae, ignore_errors=True)
  _, said = process.communicate(timeout=240)
  assert process.returncode in (0, 2), said
  assert 'Traceback' not in said
  same_as_undisturbed(overrides, workdir, tmp_path / 'whole')


@pytest.mark.slow
def test_a_disk_that_has_become_read_only(overrides, tmp_path):
  overrides = [*overrides, '--config.train.steps=400']
  with disks.small_disk(tmp_path / 'disk', 400_000_000) as disk:
    flags = [*overrides, f'--workdir={disk / "run"}']
    process = begun(flags, disk / 'run' / 'jumprelu_l0_0.1' / 'metrics.jsonl')
    process.kill()
    process.wait()
    subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
    assert '(Read-only file system)' in refused(*flags)
    subprocess.run(['mount', '-o', 'remount,rw', str(disk)], check=True)
    same_as_undisturbed(overrides, disk / 'run', tmp_path / 'whole')
