"""A few of `tests.chaos`'s disturbances; `python -m tests.chaos` has many."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize('kind', [[], ['--power']], ids=['killed', 'no power'])
def test_a_sweep_that_ends_six_times_is_bit_identical(tmp_path, kind):
  arguments = [*kind, '--kills=6', '--minutes=20', f'--workdir={tmp_path}']
  done = subprocess.run(
    [sys.executable, '-m', 'tests.chaos', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert re.search(r'\d+  sweeps bit-identical', done.stdout), done.stdout
  (kills,) = re.findall(r'^(\d+) kills in', done.stdout, re.MULTILINE)
  assert int(kills) >= 6
