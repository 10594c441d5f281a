"""Several processes train one SAE as one process does."""

import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

PROGRAM = pathlib.Path(__file__).with_name('program_of_one_host.py')
ROOT = PROGRAM.parents[1]
STEPS = 8


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def start(hosts, mesh, folder, *, steps=STEPS, stop=0):
  """Starts the processes of a run; its devices are four in all."""
  port = free_port()
  return [
    subprocess.Popen(
      [
        sys.executable,
        str(PROGRAM),
        *map(str, (index, hosts, port, *mesh, steps, stop, folder)),
      ],
      cwd=ROOT,
      env={'PYTHONPATH': f'{ROOT}:{PROGRAM.parent}', 'PATH': ''},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(hosts)
  ]


def finish(processes):
  """Waits for all; returns what they printed."""
  outputs = [process.communicate(timeout=120)[0] for process in processes]
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


def leaves(folder):
  with np.load(folder / 'leaves.npz') as file:
    return [file[name] for name in file.files]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """What one process with four devices trains."""
  folder = tmp_path_factory.mktemp('alone')
  finish(start(1, (2, 2), folder))
  return leaves(folder)


def assert_near(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('mesh', [(2, 2), (4, 1), (1, 4)], ids=str)
@pytest.mark.slow
def test_two_processes_train_what_one_does(mesh, alone, tmp_path):
  finish(start(2, mesh, tmp_path))
  assert_near(leaves(tmp_path), alone)


@pytest.mark.parametrize('hosts_mesh', [(1, (1, 1)), (1, (4, 1)), (2, (1, 4))])
@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts(hosts_mesh, alone, tmp_path):
  finish(start(2, (2, 2), tmp_path, stop=4))
  assert not (tmp_path / 'leaves.npz').exists()
  finish(start(*hosts_mesh, tmp_path))
  assert_near(leaves(tmp_path), alone)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(alone, tmp_path):
  """Within a minute, with a line that says so; and the run goes on."""
  processes = start(2, (2, 2), tmp_path, steps=100_000)
  curve = tmp_path / 'metrics.jsonl'
  deadline = time.monotonic() + 60
  while not curve.exists() or len(curve.read_text().splitlines()) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  processes[1].kill()
  began = time.monotonic()
  output, _ = processes[0].communicate(timeout=60)
  assert processes[0].returncode != 0
  assert time.monotonic() - began < 60
  assert 'task' in output.lower() or 'connection' in output.lower(), output
