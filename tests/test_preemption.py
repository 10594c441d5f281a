"""SIGTERM: what is done is saved, and the exit code says so."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from helpers import commands
from helpers import several_hosts
from helpers.small_planted import PlantedShards
import jax
import numpy as np
import pytest

from jumprelu_jax import checkpoint
from jumprelu_jax import inputs
from jumprelu_jax import loop
from jumprelu_jax import preemption
from jumprelu_jax import sharding
from jumprelu_jax import supply
from jumprelu_jax import writer
from jumprelu_jax.activations import store as store_lib

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_handler_is_left():
  before = signal.getsignal(signal.SIGTERM)
  yield
  assert signal.getsignal(signal.SIGTERM) is before
  assert not preemption.is_asked()


def test_the_first_is_a_notice_and_the_second_ends_all():
  with preemption.heard():
    assert not preemption.is_asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert preemption.is_asked()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(preemption.PreemptedError, match='what is kept'):
      preemption.check('what is kept')
  preemption.check('nothing was asked')


def test_who_does_not_listen_has_no_handler_installed():
  script = """
import signal
import jumprelu_jax
from jumprelu_jax import loop, runs
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('last', [1, 3, 4, 5, 7])
def test_training_stopped_at_any_step_ends_bit_identical(
  planted_run, tmp_path, last
):
  """Between two records, too: the curve is the same."""
  run = planted_run.with_values({'activations.prefetch_batches': 0})
  mesh = sharding.make_mesh(1, 1)

  class Stopped(PlantedShards):
    opened = 0

    def open(self, index):
      self.opened += 1  # a shard is a batch here, and one is opened ahead
      if self.opened == last + 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return super().open(index)

  with (
    preemption.heard(),
    pytest.raises(preemption.PreemptedError, match='stopped on request'),
  ):
    loop.fit(run, Stopped(), mesh, tmp_path / 'stopped')
  saves = checkpoint.Checkpointer(tmp_path / 'stopped' / 'checkpoints')
  (*_, saved) = saves.steps()
  saves.close()
  assert saved in (last - 1, last, last + 1)
  state = loop.fit(run, PlantedShards(), mesh, tmp_path / 'stopped')
  whole = loop.fit(run, PlantedShards(), mesh, tmp_path / 'whole')
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(a, b)
  curves = [writer.read_curve(tmp_path / n) for n in ('stopped', 'whole')]
  assert curves[0] == curves[1]


def signalled(arguments, is_time, number=signal.SIGTERM):
  """Runs a command, sends a signal; returns (exit code, what it said)."""
  process = subprocess.Popen(
    arguments, cwd=ROOT, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 120
  while not is_time():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(number)
  _, said = process.communicate(timeout=120)
  return process.returncode, said


@pytest.mark.slow
def test_a_sweep_ends_with_75_and_goes_on(overrides, tmp_path):
  whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
  done = commands.run('sweep', *overrides, f'--workdir={whole}')
  assert done.returncode == 0, done.stderr
  command = commands.command('sweep', *overrides, f'--workdir={stopped}')
  curve = stopped / 'jumprelu_l0_0.1' / 'metrics.jsonl'
  code, said = signalled(
    command, lambda: curve.exists() and curve.read_text().count('\n') > 3
  )
  assert code == 75, said
  assert 'preempted: train 2 SAEs: stopped on request after step' in said
  assert 'the same command goes on from there' in said
  assert not (stopped / 'run.lock').exists()
  done = commands.run('sweep', *overrides, f'--workdir={stopped}')
  assert done.returncode == 0, done.stderr
  got, want = map(commands.outcome, (stopped, whole))
  assert got[0] == want[0]
  for key, array in got[1].items():
    np.testing.assert_array_equal(array, want[1][key])


@pytest.mark.slow
def test_no_secret_is_in_any_line_or_file(overrides, tmp_path, monkeypatch):
  secret = 'hf_do_not_tell_anyone_0123456789'
  monkeypatch.setenv('HF_TOKEN', secret)
  workdir = tmp_path / 'run'
  done = commands.run(
    'sweep', *overrides, '--config.train.steps=100', f'--workdir={workdir}'
  )
  assert done.returncode == 0, done.stderr
  assert secret not in done.stdout + done.stderr
  files = [path for path in workdir.rglob('*') if path.is_file()]
  assert len(files) > 20
  assert not [p for p in files if secret.encode() in p.read_bytes()]


def test_a_harvest_ends_between_batches(tiny_run, tmp_path, monkeypatch):
  """Shards that are written are kept; a bucket in the making is not."""
  prepared = inputs.prepare(
    tiny_run.with_values({'activations.bucket_rows': 128})
  )
  make, made = supply.harvest_lib.buckets.make, []

  def stopped(plan, tap, index, on_batch):
    made.append(index)
    if len(made) == 4:
      os.kill(os.getpid(), signal.SIGTERM)
    return make(plan, tap, index, on_batch)

  monkeypatch.setattr(supply.harvest_lib.buckets, 'make', stopped)
  with (
    preemption.heard(),
    pytest.raises(preemption.PreemptedError, match='shards that are written'),
  ):
    supply.harvest(prepared, str(tmp_path))
  store = store_lib.Store(tmp_path / 'resid_post_1')
  assert set(range(len(store.rows_per_shard))) - set(store.missing) == {0, 1, 2}
  assert store.verify() == []
  monkeypatch.setattr(supply.harvest_lib.buckets, 'make', make)
  supply.harvest(prepared, str(tmp_path))
  assert store_lib.Store(tmp_path / 'resid_post_1').is_complete


@pytest.mark.slow
def test_processes_stop_at_one_step_and_go_on(tmp_path):
  """JAX tells all of them where, though only one is sent the signal."""
  alone = tmp_path / 'alone'
  several_hosts.finish(several_hosts.start(1, (2, 2), alone, steps=400))
  folder = tmp_path / 'two'
  processes = several_hosts.start(2, (2, 2), folder, steps=400)
  curve = folder / 'metrics.jsonl'
  deadline = time.monotonic() + 60
  while not curve.exists() or len(curve.read_text().splitlines()) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=60)[0] for process in processes]
  assert [p.returncode for p in processes] == [75, 75], said
  several_hosts.finish(several_hosts.start(2, (2, 2), folder, steps=400))
  several_hosts.assert_near(
    several_hosts.leaves(folder), several_hosts.leaves(alone)
  )
