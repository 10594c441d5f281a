"""One run in several processes, as on several hosts."""

import pathlib
import socket
import subprocess
import sys

import numpy as np

PROGRAM = pathlib.Path(__file__).with_name('program_of_one_host.py')
ROOT = PROGRAM.parents[2]
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
      env={'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}', 'PATH': ''},
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


def assert_near(got, want):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
