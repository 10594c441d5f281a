"""Harvests: complete, resumable to the byte, shared, and bounded in memory."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

from helpers import folders
from helpers import small_plan
from helpers import small_store
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.activations import batches
from jumprelu_jax.activations import buckets
from jumprelu_jax.activations import harvest as harvest_lib
from jumprelu_jax.activations import places
from jumprelu_jax.activations import store as store_lib

ROOT = pathlib.Path(__file__).parents[1]
TOKENS_NL = small_plan.some_tokens(43, 12, seed=3)
PLAN = small_plan.make_plan(TOKENS_NL)  # nine buckets
NUM_BUCKETS = 9


def make_stores(folder, **values):
  """Stores of two sites, as `small_plan.tap_two` fills them."""
  fields = {'num_shards': NUM_BUCKETS, 'dtype': 'float32'}
  return {
    folder / 'one': small_store.describe(d_model=3, **{**fields, **values}),
    folder / 'two': small_store.describe(d_model=2, **{**fields, **values}),
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A folder of two whole stores; not to be changed."""
  folder = tmp_path_factory.mktemp('whole')
  made = harvest_lib.harvest(PLAN, small_plan.tap_two, make_stores(folder))
  assert made == NUM_BUCKETS
  return folder


@pytest.fixture
def copied(whole, tmp_path):
  """A copy of the whole stores, to be harmed."""
  shutil.copytree(whole, tmp_path / 'copy')
  return tmp_path / 'copy'


def failing(calls, error=RuntimeError):
  """A tap that raises at its n-th call."""
  count = iter(range(calls))

  def tap(tokens_BL):
    if next(count, None) is None:
      raise error('the model fails here')
    return small_plan.tap_two(tokens_BL)

  return tap


def test_a_harvest_makes_every_bucket_and_a_complete_manifest(whole):
  for folder, description in make_stores(whole).items():
    store = store_lib.Store(folder)
    assert store.is_complete
    assert store.description == description
    assert store.verify() == []
    assert store.rows_per_shard == PLAN.rows_per_bucket()
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert manifest['complete'] is True
    assert [s['index'] for s in manifest['shards']] == list(range(NUM_BUCKETS))
    is_text_NL = ~np.isin(TOKENS_NL, small_plan.SPECIAL)
    assert manifest['num_rows'] == is_text_NL.sum()


def test_stores_hold_the_buckets(whole):
  stores = [store_lib.Store(folder) for folder in make_stores(whole)]
  for index in range(NUM_BUCKETS):
    bucket = buckets.make(PLAN, small_plan.tap_two, index)
    for store, rows_ND in zip(stores, bucket.rows, strict=True):
      np.testing.assert_array_equal(store.open(index), rows_ND)
      np.testing.assert_array_equal(store.origin(index), bucket.origin_N3)


@pytest.mark.parametrize('calls', [0, 1, 4, 10, 25])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_interrupted_harvest_ends_byte_identical(whole, tmp_path, calls, error):
  with pytest.raises(error, match='the model fails here'):
    harvest_lib.harvest(PLAN, failing(calls, error), make_stores(tmp_path))
  # Three batches make a bucket. What was made before is there and listed.
  done = calls // 3
  for folder in make_stores(tmp_path):
    store = store_lib.Store(folder)
    assert store.missing == tuple(range(done, NUM_BUCKETS))
    assert store.verify() == []
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert [s['index'] for s in manifest['shards']] == list(range(done))
  made = harvest_lib.harvest(PLAN, small_plan.tap_two, make_stores(tmp_path))
  assert made == NUM_BUCKETS - done
  assert folders.contents(tmp_path) == folders.contents(whole)


def test_a_whole_store_is_not_made_again(copied):
  before = folders.contents(copied)
  assert harvest_lib.harvest(PLAN, failing(0), make_stores(copied)) == 0
  assert folders.contents(copied) == before


def test_a_deleted_shard_is_made_again_alone(whole, copied):
  for path in (copied / 'one').glob('shard_00004.*'):
    path.unlink()
  (copied / 'two' / 'shard_00007.json').unlink()
  before = folders.times(copied)
  made = harvest_lib.harvest(PLAN, small_plan.tap_two, make_stores(copied))
  assert made == 2
  assert folders.contents(copied) == folders.contents(whole)
  after = folders.times(copied)
  touched = {name for name in after if before.get(name) != after[name]}
  # Not shard 4 of the second site, nor shard 7 of the first.
  assert {name for name in touched if 'manifest' not in name} == {
    f'{shard}.{ending}'
    for shard in ('one/shard_00004', 'two/shard_00007')
    for ending in ('npy', 'origin.npy', 'json')
  }


def read_an_epoch(store):
  with contextlib.closing(batches.Batches(store, 16, 0)) as some:
    for step in range(-(-store.num_rows // 16)):
      some[step]


@pytest.mark.parametrize('form', ['npy', 'zarr3'])
@pytest.mark.parametrize('harm', [folders.flip, folders.truncate])
def test_damage_is_named_refused_by_training_and_mended(tmp_path, harm, form):
  stores = make_stores(tmp_path, format=form)
  harvest_lib.harvest(PLAN, small_plan.tap_two, stores)
  before = folders.contents(tmp_path)
  folder = tmp_path / 'one'
  harm(small_store.rows_file(folder, 5))
  ((index, problem),) = store_lib.Store(folder).verify()
  assert index == 5
  assert 'shard_00005' in problem
  assert 'delete shard_00005.* and run experiments.harvest again' in problem
  # Training meets it in its first epoch.
  store = store_lib.Store(folder)
  with pytest.raises(errors.InputError) as caught:
    read_an_epoch(store)
  assert 'shard_00005' in str(caught.value)
  # Done as the message says:
  for path in folder.glob('shard_00005.*'):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert harvest_lib.harvest(PLAN, small_plan.tap_two, stores) == 1
  assert store_lib.Store(folder).verify() == []
  assert folders.contents(tmp_path) == before


def test_a_store_of_something_else_is_refused_and_left_alone(copied):
  stores = make_stores(copied)
  one, two = stores
  # The first store is the harvest's own, with a shard to make; not the second.
  for path in one.glob('shard_00002.*'):
    path.unlink()
  before, then = folders.contents(copied), folders.times(copied)
  stores[two] = small_store.describe(
    d_model=2, dtype='float32', num_shards=NUM_BUCKETS, seed=1, text='b.jsonl'
  )
  with pytest.raises(errors.InputError) as caught:
    harvest_lib.harvest(PLAN, failing(0), stores)
  message = str(caught.value)
  assert str(two) in message
  assert "text: 'a.jsonl' there, 'b.jsonl' wanted" in message
  assert 'seed: 0 there, 1 wanted' in message
  assert 'd_model' not in message
  assert 'name another folder, or delete this one' in message
  assert (folders.contents(copied), folders.times(copied)) == (before, then)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_hosts_in_turn_make_what_one_makes(whole, tmp_path, order):
  made = [
    harvest_lib.harvest(
      PLAN, small_plan.tap_two, make_stores(tmp_path), host=host, hosts=3
    )
    for host in order
  ]
  assert made == [3, 3, 3]
  assert folders.contents(tmp_path) == folders.contents(whole)


def test_hosts_that_interleave_make_what_one_makes(
  whole, tmp_path, monkeypatch
):
  # Hosts are processes; here threads, so they need names of their own.
  monkeypatch.setattr(places.os, 'getpid', threading.get_ident)
  turn = threading.Barrier(3)
  made, problems = {}, []

  def tap(tokens_BL):
    turn.wait(30)  # batch by batch, all at once
    return small_plan.tap_two(tokens_BL)

  def run(host):
    try:
      made[host] = harvest_lib.harvest(
        plan, tap, make_stores(tmp_path), host=host, hosts=3
      )
    except BaseException as error:
      problems.append(error)
      turn.abort()

  # One batch for each bucket, so each host has three.
  plan = small_plan.make_plan(TOKENS_NL, sequences_per_batch=5)
  threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert problems == []
  assert made == {0: 3, 1: 3, 2: 3}
  assert folders.contents(tmp_path) == folders.contents(whole)


def test_the_first_error_of_a_full_disk_is_told(tmp_path, monkeypatch):
  stores = make_stores(tmp_path)
  harvest_lib.harvest(PLAN, small_plan.tap_two, stores, host=0, hosts=3)

  def full(number):
    raise OSError(28, 'No space left on device')

  write = store_lib.write_shard

  def write_shard(*args):
    monkeypatch.setattr(places.os, 'fsync', full)  # from now on, for all
    write(*args)

  monkeypatch.setattr(store_lib, 'write_shard', write_shard)
  with pytest.raises(errors.DiskFullError, match='shard_00001'):
    harvest_lib.harvest(PLAN, small_plan.tap_two, stores)
  monkeypatch.undo()
  assert store_lib.Store(tmp_path / 'one').missing == (1, 2, 4, 5, 7, 8)


def test_a_slow_disk_holds_up_the_model(tmp_path, monkeypatch):
  batches_made, when_written = [], []
  write = store_lib.write_shard

  def tap(tokens_BL):
    batches_made.append(len(tokens_BL))
    return small_plan.tap_two(tokens_BL)

  def write_shard(*args):
    if not when_written:
      time.sleep(0.2)  # the model alone would be done with all by then
    when_written.append(len(batches_made))
    write(*args)

  monkeypatch.setattr(store_lib, 'write_shard', write_shard)
  harvest_lib.harvest(PLAN, tap, make_stores(tmp_path))
  # Three batches a bucket: the one that is written, and one that waits.
  assert when_written[0] == 6
  assert len(batches_made) == 26


def test_live_shards_are_those_of_a_store(tmp_path):
  def tap_one(tokens_BL):
    return (small_plan.telling(tokens_BL),)

  description = small_store.describe(
    d_model=3, num_shards=NUM_BUCKETS, dtype='float32'
  )
  harvest_lib.harvest(PLAN, tap_one, {tmp_path: description})
  store, live = store_lib.Store(tmp_path), harvest_lib.Live(PLAN, tap_one)
  assert live.rows_per_shard == store.rows_per_shard
  assert live.scales == store.scales
  assert live.widths == store.widths == (3,)
  for index in (3, 0, 3):
    np.testing.assert_array_equal(live.open(index), store.open(index))


def test_live_without_text_in_its_first_bucket_is_one_clear_error():
  tokens_NL = np.full((3, 4), small_plan.PAD, np.int32)
  plan = small_plan.make_plan(tokens_NL)
  with pytest.raises(errors.InputError, match='no text'):
    harvest_lib.Live(plan, small_plan.tap_two)


MEMORY = """
import sys
sys.path[:0] = ['tests', '.']
import numpy as np
from helpers import small_plan
from helpers import small_store
from jumprelu_jax.activations import harvest

folder, num_buckets = sys.argv[1:]
length, wide = 65, 2048
tokens_NL = np.full((128 * int(num_buckets), length), 7, np.int32)
tokens_NL[:, 0] = small_plan.BOS
plan = small_plan.make_plan(
  tokens_NL,
  sequences_per_bucket=128,
  sequences_per_batch=4,
  max_norm_multiple=10.0,
)

def tap(tokens_BL):
  x_BLD = np.ones((*tokens_BL.shape, wide), np.float32)
  x_BLD[:, 3] = 50.0  # one position in 64 is an outlier
  return (x_BLD,)

description = small_store.describe(
  d_model=wide, dtype='float32', num_shards=plan.num_buckets
)
# Not getrusage, which counts what the parent had when it started us.
def peak_kb():
  with open('/proc/self/status') as file:
    return int(file.read().split('VmHWM:')[1].split()[0])

before = peak_kb()
harvest.harvest(plan, tap, {folder: description})
print(peak_kb() - before)
"""


@pytest.mark.slow
def test_memory_is_two_buckets_however_long_the_text(tmp_path):
  bucket_mb = 128 * 64 * 2048 * 4 / 2**20  # 64
  peaks_mb = []
  for num_buckets in (1, 4):
    folder = tmp_path / str(num_buckets)
    done = subprocess.run(
      [sys.executable, '-c', MEMORY] + [str(folder), str(num_buckets)],
      cwd=ROOT,
      # What is freed is given back at once, and not counted.
      env=os.environ | {'MALLOC_MMAP_THRESHOLD_': '65536'},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    peaks_mb.append(int(done.stdout) / 1024)
    shutil.rmtree(folder)
  one, four = peaks_mb
  # One bucket; and a second that is written while it is made. The rest is two
  # batches of 2 MiB, and the 16 MiB that are summed at a time in float64.
  assert bucket_mb < one < 1.9 * bucket_mb + 32
  assert four < one + 1.2 * bucket_mb
