"""`python -m experiments.harvest`: killed, out of space, several at once."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

from helpers import disks
from helpers import folders
import numpy as np
import pytest

from jumprelu_jax.activations import store as store_lib

pytestmark = pytest.mark.slow  # whole commands
ROOT = pathlib.Path(__file__).parents[1]
# `datasets` would import torch, which takes as long as all else together.
ENVIRONMENT = os.environ | {'USE_TORCH': '0'}
SITES = ('resid_post_1', 'mlp_out_0')


@pytest.fixture(scope='module')
def command(tiny_lm, tiny_text):
  """A function from a folder to a command that fills two stores there."""
  values = {
    'lm.path': tiny_lm,
    'lm.layer': 1,
    'text.harvest': tiny_text,
    'text.heldout': tiny_text,
    'text.context_length': 16,
    'activations.sites': 'resid_post/1,mlp_out/0',
    'activations.bucket_rows': 64,
    'activations.sequences_per_batch': 4,
    'activations.max_norm_multiple': '1.5',
    'train.batch_size': 64,
  }
  return lambda folder, *more: [
    *[sys.executable, '-m', 'experiments.harvest', f'--workdir={folder}'],
    f'--config={ROOT / "configs" / "quickstart.py"}:quick',
    *[f'--config.{key}={value}' for key, value in values.items()],
    *more,
  ]


def run(arguments):
  return subprocess.run(
    arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
  )


def start(arguments):
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=ENVIRONMENT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def shards(folder):
  return {
    name: content
    for name, content in folders.contents(folder).items()
    if '/shard_' in name or name.startswith('sequences')
  }


@pytest.fixture(scope='module')
def whole(command, tmp_path_factory):
  """A folder that one harvest has filled; not to be changed."""
  folder = tmp_path_factory.mktemp('harvested') / 'whole'
  done = run(command(folder))
  assert done.returncode == 0, done.stderr
  for site in SITES:
    assert f'{folder}/{site}: ' in done.stderr
    store = store_lib.Store(folder / site)
    assert store.is_complete
    assert len(store.rows_per_shard) > 20
    assert store.outlier_rate > 0
    assert store.verify() == []
  return folder


def test_killed_harvest_ends_byte_identical(command, whole, tmp_path):
  rng = np.random.default_rng()
  last = len(store_lib.Store(whole / SITES[0]).rows_per_shard)
  moments = np.sort(rng.integers(1, last - 3, 2))  # shards of the second site
  folder = tmp_path / 'killed'
  for moment in moments:
    process = start(command(folder))
    deadline = time.monotonic() + 60
    while len(list((folder / SITES[1]).glob('shard*.json'))) < moment:
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01))
    process.kill()
    process.communicate()
    assert process.returncode == -9, moments
    for site in SITES:
      assert store_lib.Store(folder / site).verify() == []
  assert store_lib.Store(folder / SITES[1]).missing
  done = run(command(folder))
  assert done.returncode == 0, done.stderr
  assert folders.contents(folder) == folders.contents(whole), moments


def test_hosts_at_once_make_what_one_makes(command, whole, tmp_path):
  processes = [
    start(command(tmp_path, f'--host={host}', '--hosts=2')) for host in (0, 1)
  ]
  for process in processes:
    _, said = process.communicate()
    assert process.returncode == 0, said
  assert folders.contents(tmp_path) == folders.contents(whole)


def test_damage_of_every_store_is_found_by_verify(command, whole, tmp_path):
  folder = tmp_path / 'damaged'
  shutil.copytree(whole, folder)
  folders.flip(folder / SITES[0] / 'shard_00003.npy')
  folders.truncate(folder / SITES[1] / 'shard_00005.origin.npy')
  done = run(command(folder, '--verify'))
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ')
  # Both stores' damage in one line, with what to do.
  for site, shard in zip(SITES, ('shard_00003', 'shard_00005'), strict=True):
    assert f'{folder}/{site}' in line
    assert f'delete {shard}.* and run experiments.harvest again' in line


def test_full_disk_names_the_shard_and_goes_on_after(command, whole, tmp_path):
  # A disk that has no room for more files is full, too, and only then.
  with disks.small_disk(tmp_path / 'disk', 6_000_000, files=60) as disk:
    folder = disk / 'stores'
    done = run(command(folder))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith('error: shard_000')
    assert 'No space left on device' in line
    assert 'give the same command again' in line
    named = int(line.split('shard_')[1][:5])
    assert named > 1
    made = [store_lib.Store(folder / site) for site in SITES]
    for store, site in zip(made, SITES, strict=True):
      assert store.verify() == []
      assert store.missing[0] in (named, named + 1)
      assert store.open(named - 1)[:].tobytes() == (
        store_lib.Store(whole / site).open(named - 1)[:].tobytes()
      )
    disks.resize(disk, 10_000)
    done = run(command(folder))
    assert done.returncode == 0, done.stderr
    assert folders.contents(folder) == folders.contents(whole)


def test_what_will_not_fit_is_refused_before_it_begins(command, tmp_path):
  with disks.small_disk(tmp_path / 'disk', 200_000) as disk:
    done = run(command(disk / 'stores'))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    # 128 sequences of 16 tokens; float32 rows of 16, and 12 bytes of origin.
    rows = 128 * 16 * (16 * 4 + 12)
    assert f'rows of resid_post of layer 1 {rows:,}' in line
    assert f'needs about {2 * rows + 128 * 16 * 4:,} bytes' in line
    assert 'too few' in line
    assert 'lower config.activations.sequences' in line
    assert 'Nothing was written' in line
    assert not (disk / 'stores').exists()
