"""An evaluation that is killed or stopped keeps what is finished."""

import os
import signal

import pytest

from jumprelu_jax import inputs
from jumprelu_jax import preemption
from jumprelu_jax import run_folder
from jumprelu_jax import runs
from jumprelu_jax import sae_folders
from jumprelu_jax import sweeps

NAMES = ('jumprelu_l0_0.001', 'jumprelu_l0_0.01', 'jumprelu_l0_0.1')


class KilledError(BaseException):
  """Nobody may catch it, as nobody can SIGKILL."""


@pytest.fixture(scope='module')
def run(tiny_run):
  return tiny_run.with_values({'sweep.saes': ('jumprelu/l0/1e-3/1e-2/1e-1',)})


def sweep(run, workdir):
  swept = sweeps.expand(run)
  prepared = inputs.prepare(next(iter(swept.values())))
  with run_folder.claimed(workdir, run):
    return runs.run_all(prepared, swept, workdir)


@pytest.fixture(scope='module')
def wanted(run, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('evaluated') / 'run'
  sweep(run, workdir)
  return (workdir / 'results.csv').read_bytes()


@pytest.fixture
def one_at_a_time(monkeypatch):
  monkeypatch.setattr(sae_folders, '_TOGETHER_BYTES', 1)


def evaluated(workdir):
  return [n for n in NAMES if (workdir / n / 'evaluation.json').exists()]


def counted(monkeypatch, at, what):
  """Has something happen in the evaluation of an SAE; returns who was begun."""
  measure, begun = sae_folders.evaluation.measure, []

  def measured(saes, *arguments):
    begun.append(len(saes))
    if len(begun) == at:
      what()
    return measure(saes, *arguments)

  monkeypatch.setattr(sae_folders.evaluation, 'measure', measured)
  return begun


def test_killed(run, wanted, tmp_path, monkeypatch, one_at_a_time):
  def kill():
    raise KilledError

  with monkeypatch.context() as patched:
    counted(patched, 2, kill)
    with pytest.raises(KilledError):
      sweep(run, tmp_path / 'run')
  assert evaluated(tmp_path / 'run') == [NAMES[0]]
  begun = counted(monkeypatch, 0, kill)
  sweep(run, tmp_path / 'run')
  assert begun == [1, 1]
  assert (tmp_path / 'run' / 'results.csv').read_bytes() == wanted


def test_asked_to_end(run, wanted, tmp_path, monkeypatch, one_at_a_time):
  with monkeypatch.context() as patched, preemption.heard():
    counted(patched, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(preemption.PreemptedError, match='evaluated is kept'):
      sweep(run, tmp_path / 'run')
  assert evaluated(tmp_path / 'run') == list(NAMES[:2])
  begun = counted(monkeypatch, 0, None)
  sweep(run, tmp_path / 'run')
  assert begun == [1]
  assert (tmp_path / 'run' / 'results.csv').read_bytes() == wanted


def test_killed_between_a_result_and_its_seal(
  run, wanted, tmp_path, monkeypatch
):
  """It is measured again, to the same bits."""
  write = runs.seals.write

  def killed(folder, about, names=None):
    if names and 'evaluation.json' in names:
      raise KilledError
    write(folder, about, names)

  with monkeypatch.context() as patched:
    patched.setattr(runs.seals, 'write', killed)
    with pytest.raises(KilledError):
      sweep(run, tmp_path / 'run')
  assert evaluated(tmp_path / 'run') == [NAMES[0]]
  sweep(run, tmp_path / 'run')
  assert (tmp_path / 'run' / 'results.csv').read_bytes() == wanted
