"""A lock that a crash releases."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jumprelu_jax import errors
from jumprelu_jax import lock

ROOT = pathlib.Path(__file__).parents[1]
HOLDER = """
import sys, time
from jumprelu_jax import lock
with lock.held(sys.argv[1]):
  print('held', flush=True)
  time.sleep(60)
"""


def start_holder(path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLDER, str(path)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  return process


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path):
  path = tmp_path / 'run.lock'
  process = start_holder(path)
  try:
    with (
      pytest.raises(errors.InputError, match=f'process {process.pid} on '),
      lock.held(path),
    ):
      pass
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert path.exists()  # killed: the file is left, the lock is not
  with lock.held(path):
    assert f'"pid": {os.getpid()}' in path.read_text()
  assert not path.exists()


def test_it_is_released_where_an_error_ends_the_work(tmp_path):
  path = tmp_path / 'run.lock'
  with pytest.raises(ZeroDivisionError), lock.held(path):
    _ = 1 / 0
  assert not path.exists()
  with lock.held(path):
    pass


def test_of_many_that_come_and_go_one_holds_it_at_a_time(tmp_path):
  script = """
import sys, pathlib
from jumprelu_jax import errors, lock
path, inside = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
taken = 0
while taken < 100:
  try:
    with lock.held(path):
      inside.mkdir()  # fails if another is inside
      inside.rmdir()
      taken += 1
  except errors.InputError:
    pass
"""
  arguments = [str(tmp_path / 'run.lock'), str(tmp_path / 'inside')]
  processes = [
    subprocess.Popen([sys.executable, '-c', script, *arguments], cwd=ROOT)
    for _ in range(3)
  ]
  assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
  def unsupported(file, operation):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', unsupported)
  with lock.held(tmp_path / 'run.lock'):
    pass
  assert 'has no locks' in capsys.readouterr().err
