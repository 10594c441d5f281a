"""Batches by step: every row once an epoch, any step alone."""

import gc
import threading
import time

from helpers import small_store
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.activations import store as store_lib

SECONDS = 20  # longer than any of this takes


class Numbered:
  """Shards in memory; row i of all of them is (i, -i)."""

  scale = 1.0
  d_model = 2

  def __init__(self, sizes, dtype=np.float32):
    self.rows_per_shard = tuple(sizes)
    self.opened = []
    self.threads = set()
    starts = np.cumsum([0, *sizes])
    self._shards = [
      np.stack([i_N := np.arange(start, start + n), -i_N], 1).astype(dtype)
      for start, n in zip(starts[:-1], sizes, strict=True)
    ]

  def open(self, index):
    self.opened.append(index)
    self.threads.add(threading.current_thread().name)
    return self._shards[index]


def numbers(batches, steps):
  """Returns the numbers of the rows of some steps, one after the other."""
  return np.concatenate([batches[step][:, 0] for step in steps]).astype(int)


def random_sizes(seed):
  rng = np.random.default_rng(seed)
  special = [0, 1, 255, 256, 257, 512, 700, int(rng.integers(1, 1000))]
  return rng.choice(special, rng.integers(1, 6)).tolist()


@pytest.mark.parametrize('hosts', [2, 3, 4])
def test_shares_make_up_the_batch_and_read_no_more(hosts):
  sizes, batch_size = [700, 300, 513], 120
  whole = batches_lib.Batches(Numbered(sizes), batch_size, 7)
  size = batch_size // hosts
  shares = [
    batches_lib.Batches(
      Numbered(sizes), batch_size, 7, share=(size * i, size * (i + 1))
    )
    for i in range(hosts)
  ]
  for step in (0, 3, 11, 40):
    parts = [share[step] for share in shares]
    assert [len(part) for part in parts] == [size] * hosts
    np.testing.assert_array_equal(np.concatenate(parts), whole[step])


@pytest.mark.parametrize('seed', range(25))
def test_every_row_occurs_once_an_epoch(seed):
  sizes = random_sizes(seed)
  total = sum(sizes)
  if not total:
    sizes, total = [0, 300, 0], 300
  batch_size = int(np.random.default_rng(seed).integers(1, 400))
  batches = batches_lib.Batches(Numbered(sizes), batch_size, seed)
  epochs = 3
  steps = range(-(-epochs * total // batch_size))
  stream = numbers(batches, steps)[: epochs * total].reshape(epochs, total)
  for epoch in stream:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(total))
  if total > 1000:
    assert not np.array_equal(stream[0], stream[1])
  # Any step alone, in any order, by an object that has seen no other.
  rng = np.random.default_rng(seed)
  other = batches_lib.Batches(Numbered(sizes), batch_size, seed)
  for step in rng.integers(0, 10 * len(steps), 30).tolist():
    fresh = batches_lib.Batches(Numbered(sizes), batch_size, seed)[step]
    np.testing.assert_array_equal(other[step], fresh)
    if step < len(steps):
      np.testing.assert_array_equal(fresh, batches[step])


def test_shards_and_blocks_are_visited_whole_and_in_random_order():
  sizes = [256 * 20, 256 * 20, 256 * 20, 100]
  batches = batches_lib.Batches(Numbered(sizes), sum(sizes), 0)
  shard_orders, block_orders = set(), set()
  for epoch in range(12):
    rows = batches[epoch][:, 0].astype(int)
    shards = rows // (256 * 20)
    changes = np.flatnonzero(np.diff(shards)) + 1
    assert len(changes) == 3  # a shard is read to its end
    shard_orders.add(tuple(shards[[0, *changes]].tolist()))
    blocks = np.flatnonzero(np.diff(rows) != 1)
    # Within a block rows are as stored: 60 blocks and the short one, of which
    # by chance a few follow each other in the order they are stored in.
    assert 45 <= len(blocks) <= 60
    block_orders.add(tuple(rows[shards == 0][::256].tolist()))
  assert len(shard_orders) > 4  # of 24
  assert len(block_orders) == 12


def test_order_is_what_it_was():
  """Resuming under another NumPy must not change the order in silence.

  The numbers were printed once; the order of a seed is part of a run. If NumPy
  ever changes its permutation, say so in the change log and print them anew.
  """
  sizes = [3 * 256, 2 * 256, 10]
  batches = batches_lib.Batches(Numbered(sizes), 1290, 7)
  firsts = [batches[epoch][:, 0].astype(int) for epoch in range(2)]
  starts = [
    rows[[0, *(np.flatnonzero(np.diff(rows) != 1) + 1)]] for rows in firsts
  ]
  assert [s.tolist() for s in starts] == [
    [0, 512, 256, 1280, 768],
    [512, 0, 1280, 1024, 768],
  ]


def test_seeds_differ():
  sizes = [2000, 2000]
  one, two = (batches_lib.Batches(Numbered(sizes), 500, s) for s in (1, 2))
  assert not np.array_equal(one[0], two[0])


def test_shards_of_one_size_have_orders_of_their_own():
  """Neither shards nor epochs nor the order of shards share a permutation."""
  sizes = [256 * 8] * 8
  batches = batches_lib.Batches(Numbered(sizes), 256, 0)
  blocks = numbers(batches, range(64 * 2))[::256] // 256
  orders = {tuple(part % 8) for part in blocks.reshape(16, 8)}
  shards = {tuple(part // 8) for part in blocks.reshape(2, 8, 8)[..., 0]}
  assert len(orders) == 16
  assert len(shards) == 2
  assert not orders & shards


@pytest.mark.parametrize('form', ['npy', 'zarr3'])
@pytest.mark.parametrize('dtype', small_store.DTYPES)
def test_store_gives_its_rows_as_they_are_stored(tmp_path, form, dtype):
  description = small_store.describe(format=form, dtype=dtype)
  small_store.write(tmp_path, description)
  every = np.concatenate(
    [small_store.some_rows(i, description)[0] for i in small_store.ALL]
  )
  batches = batches_lib.Batches(store_lib.Store(tmp_path), 286, 0)
  got = [batches[step] for step in range(3)]  # 3 x 286 = 858, an epoch
  for x_BD in got:
    assert x_BD.dtype == np.dtype(small_store.DTYPES[dtype])
    assert x_BD.shape == (286, small_store.D)
    assert x_BD.flags.c_contiguous
    assert x_BD.flags.writeable
  assert sorted(row.tobytes() for row in np.concatenate(got)) == sorted(
    row.tobytes() for row in every
  )
  assert not np.array_equal(np.concatenate(got), every)


def test_batch_may_be_larger_than_an_epoch():
  rows = batches_lib.Batches(Numbered([3, 0, 2]), 12, 0)[1][:, 0]
  # Rows 12 to 24 of epochs of 5: the end of the third, the fourth, and 4 more.
  assert sorted(rows[3:8].tolist()) == [0, 1, 2, 3, 4]
  assert len(set(rows[8:].tolist())) == 4


def test_next_shard_is_opened_while_one_is_read():
  shards = Numbered([512, 512, 512])
  batches = batches_lib.Batches(shards, 128, 0)
  batches[0]
  deadline = time.monotonic() + SECONDS
  while len(shards.opened) < 2 and time.monotonic() < deadline:
    time.sleep(0.001)
  first_two = list(shards.opened)
  assert len(first_two) == 2
  order = [int(numbers(batches, [step])[0]) // 512 for step in (0, 4, 8)]
  assert first_two == order[:2]
  numbers(batches, range(12))
  assert 'MainThread' not in shards.threads
  # Each shard once, though read in four batches; and one that comes next.
  assert sorted(shards.opened[:3]) == [0, 1, 2]


def test_a_single_shard_is_opened_once():
  shards = Numbered([300])
  numbers(batches_lib.Batches(shards, 64, 0), range(50))
  assert shards.opened == [0]


def test_shard_beyond_the_last_step_is_not_opened():
  shards = Numbered([256] * 4)
  batches = batches_lib.Batches(shards, 128, 0, num_steps=4)
  numbers(batches, range(4))
  batches._thread.shutdown()
  assert len(shards.opened) == 2


def test_error_of_the_background_comes_out_where_its_rows_are_wanted():
  class Bad(Numbered):
    broken = True

    def open(self, index):
      if index == 1 and self.broken:
        raise errors.InputError('shard 1 is bad; mend it.')
      return super().open(index)

  shards = Bad([256, 256])
  reference = batches_lib.Batches(Numbered([256, 256]), 256, 0)
  batches = batches_lib.Batches(shards, 256, 0)
  first = int(reference[0][0, 0]) // 256
  good, bad = (0, 1) if first == 0 else (1, 0)
  np.testing.assert_array_equal(batches[good], reference[good])
  for _ in range(2):
    with pytest.raises(errors.InputError, match='mend it'):
      batches[bad]
  shards.broken = False
  np.testing.assert_array_equal(batches[bad], reference[bad])


def test_bad_arguments_are_told():
  with pytest.raises(errors.InputError, match='on more text'):
    batches_lib.Batches(Numbered([0, 0]), 4, 0)
  with pytest.raises(errors.InputError, match='use 1 or more'):
    batches_lib.Batches(Numbered([5]), 0, 0)
  with pytest.raises(IndexError, match='negative'):
    batches_lib.Batches(Numbered([5]), 2, 0)[-1]


class Slow:
  """Batches that take a while, or fail, and remember what was asked."""

  def __init__(self, fails_at=None, seconds=0.0):
    self.asked = []
    self._fails_at, self._seconds = fails_at, seconds

  def __getitem__(self, step):
    self.asked.append(step)
    time.sleep(self._seconds)
    if step == self._fails_at:
      raise errors.InputError(f'step {step} is bad.')
    return np.array([step])


def threads_end():
  """True once no prefetching thread is left."""
  gc.collect()
  deadline = time.monotonic() + SECONDS
  while time.monotonic() < deadline:
    if not [t for t in threading.enumerate() if 'prefetch' in t.name]:
      return True
    time.sleep(0.01)
  return False


@pytest.mark.parametrize('depth', [0, 1, 3, 100])
def test_prefetched_batches_are_those_in_turn(depth):
  batches = batches_lib.Batches(Numbered([300, 20]), 33, 0)
  with batches_lib.prefetched(batches, 5, 40, depth) as ahead:
    got = list(ahead)
  assert [step for step, _ in got] == list(range(5, 40))
  for step, x_BD in got:
    np.testing.assert_array_equal(x_BD, batches[step])
  assert threads_end()


@pytest.mark.parametrize('depth', [0, 2])
def test_empty_range_ends_at_once(depth):
  with batches_lib.prefetched(Slow(), 3, 3, depth) as ahead:
    assert list(ahead) == []


def test_so_many_batches_are_made_ahead_and_no_more():
  slow = Slow()
  with batches_lib.prefetched(slow, 0, 100, 3) as ahead:
    next(ahead)
    deadline = time.monotonic() + SECONDS
    while len(slow.asked) < 4 and time.monotonic() < deadline:
      time.sleep(0.001)
    time.sleep(0.05)
    assert slow.asked == [0, 1, 2, 3]


def test_without_depth_nothing_is_made_ahead():
  slow, before = Slow(), set(threading.enumerate())  # another test's may end
  with batches_lib.prefetched(slow, 0, 100, 0) as ahead:
    next(ahead)
    assert slow.asked == [0]
    assert not set(threading.enumerate()) - before


@pytest.mark.parametrize('depth', [0, 3])
def test_error_comes_out_in_its_turn_and_ends_all(depth):
  with batches_lib.prefetched(Slow(fails_at=2), 0, 100, depth) as ahead:
    assert [next(ahead)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(errors.InputError, match='step 2 is bad'):
      next(ahead)
    with pytest.raises(StopIteration):
      next(ahead)
  assert threads_end()


@pytest.mark.parametrize('how', ['break', 'error', 'forgotten'])
def test_consumer_that_stops_early_leaves_no_thread(how):
  slow = Slow(seconds=0.01)
  if how == 'break':
    with batches_lib.prefetched(slow, 0, 10_000, 40) as ahead:
      for step, _ in ahead:
        if step == 2:
          break
  elif how == 'error':

    def consume():
      with batches_lib.prefetched(slow, 0, 10_000, 40) as ahead:
        next(ahead)
        raise KeyError('of the consumer')

    with pytest.raises(KeyError):
      consume()
  else:
    next(batches_lib.prefetched(slow, 0, 10_000, 40))
  assert threads_end()
  # What was queued is not made, unless nobody said that it is not wanted.
  assert len(slow.asked) <= (41 if how == 'forgotten' else 12)


def test_wait_is_what_the_consumer_waited():
  with batches_lib.prefetched(Slow(seconds=0.05), 0, 4, 0) as ahead:
    list(ahead)
  assert 0.2 <= ahead.wait_s < 2
  with batches_lib.prefetched(Slow(seconds=0.02), 0, 4, 4) as ahead:
    time.sleep(0.5)  # the work is done meanwhile
    list(ahead)
  assert ahead.wait_s < 0.05
