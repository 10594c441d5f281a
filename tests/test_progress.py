"""Progress and curves: what people and TensorBoard see."""

import io
import sys

import pytest

from jumprelu_jax import progress
from jumprelu_jax import writer


class Screen(io.StringIO):
  """Standard error that is, or is not, a terminal."""

  def __init__(self, is_terminal):
    super().__init__()
    self._is_terminal = is_terminal

  def isatty(self):
    return self._is_terminal


@pytest.mark.parametrize('is_terminal', [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(
  monkeypatch, is_terminal
):
  screen = Screen(is_terminal)
  monkeypatch.setattr(sys, 'stderr', screen)
  with progress.track('train', 100, 'steps', done=40) as bar:
    bar.advance(10, l0=12.345)
    bar.advance(50, l0=6.789)
  shown = screen.getvalue()
  assert 'train' in shown
  assert '6.789' in shown
  if is_terminal:
    assert '\r' in shown
    assert '100%' in shown
  else:
    # Nothing for ten seconds, but the end is always told.
    (line,) = shown.splitlines()
    assert line.startswith('train: 100/100 steps, ')
    assert line.endswith('0 s left, l0 6.789')


def test_rate_counts_only_work_of_this_process(monkeypatch):
  clock = iter([0.0, 20.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
  screen = Screen(False)
  monkeypatch.setattr(sys, 'stderr', screen)
  with progress.track('train', 100, 'steps', done=40) as bar:
    bar.advance(40)
  # 40 steps in 20 s are 2 steps/s; 20 are left.
  assert screen.getvalue() == 'train: 80/100 steps, 2 steps/s, 10 s left\n'


def test_a_curve_that_goes_on_has_no_record_twice(tmp_path):
  curve = writer.CurveWriter(tmp_path)
  for step in (10, 20, 30):
    curve.write(step, {'l0': 1.0 * step})
  curve.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 40, "l')  # killed while it wrote
  resumed = writer.CurveWriter(tmp_path, writer.read_curve(tmp_path)[:2], 20)
  resumed.write(30, {'l0': 99.0})
  resumed.close()
  assert writer.read_curve(tmp_path) == [
    {'step': 10, 'l0': 10.0},
    {'step': 20, 'l0': 20.0},
    {'step': 30, 'l0': 99.0},
  ]
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 2
