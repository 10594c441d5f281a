"""Small disks (tmpfs) that tests fill."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, size_bytes, files=0):
  """Yields a folder on a disk of a few MB; fails if none can be made.

  Args:
    folder: to be made.
    size_bytes: that fit.
    files: that fit; 0 for no limit. `resize` changes it.
  """
  folder.mkdir()
  options = f'size={size_bytes},nr_inodes={files}'
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)],
    capture_output=True,
    text=True,
  )
  if mounted.returncode:
    pytest.fail(
      f'no small disk can be mounted ({mounted.stderr.strip()}); run this test '
      'as root, or under: unshare -Urm'
    )
  try:
    yield folder
  finally:
    subprocess.run(['umount', '-l', str(folder)], check=True)


def resize(folder, files):
  """Lets a small disk hold more files."""
  options = f'remount,nr_inodes={files}'
  subprocess.run(['mount', '-o', options, str(folder)], check=True)
