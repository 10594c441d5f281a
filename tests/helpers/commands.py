"""Launchers as separate processes, and what a sweep leaves."""

import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]


def command(launcher, *args):
  return [sys.executable, '-m', f'experiments.{launcher}', *map(str, args)]


def run(launcher, *args):
  return subprocess.run(
    command(launcher, *args), cwd=ROOT, capture_output=True, text=True
  )


def outcome(workdir):
  """What a sweep found: its table's bytes and every SAE's arrays."""
  arrays = {}
  for path in sorted(workdir.glob('*/params.npz')):
    with np.load(path) as file:
      arrays |= {(path.parent.name, key): file[key] for key in file}
  return (workdir / 'results.csv').read_bytes(), arrays
