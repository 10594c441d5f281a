"""One run in several processes, as on several hosts."""

import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import numpy as np

from helpers import commands

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


def launch(launcher, *arguments, own=((), ()), roots=()):
  """Starts a launcher in processes.

  Args:
    launcher: its name.
    *arguments: of all processes.
    own: more arguments of each; there are as many processes.
    roots: where each one's source files are; the repository's by default.
  """
  port = free_port()
  roots = roots or [ROOT] * len(own)
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  return [
    subprocess.Popen(
      [
        *commands.command(launcher, *arguments, *more),
        f'--processes=127.0.0.1:{port},{len(own)},{index}',
      ],
      cwd=root,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, (more, root) in enumerate(zip(own, roots, strict=True))
  ]


def outcomes(processes, timeout_s=240):
  """Waits for all; returns (exit code, what it said, seconds) of each."""
  began, found = time.monotonic(), [None] * len(processes)

  def wait(i):
    try:
      _, said = processes[i].communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
      processes[i].kill()
      said = 'hangs: ' + processes[i].communicate()[1]
    found[i] = processes[i].returncode, said, time.monotonic() - began

  threads = [threading.Thread(target=wait, args=[i]) for i in range(len(found))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return found


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
