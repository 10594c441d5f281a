"""Seeds and counts at the limits of integers: exact, or refused at once."""

import jax
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import metrics
from jumprelu_jax import seeds
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.autointerp import cases
from jumprelu_jax.ratings import study
from jumprelu_jax.records import columns
from jumprelu_jax.records import counts
from jumprelu_jax.records import firings
from jumprelu_jax.records import hashing
from jumprelu_jax.records import state
from jumprelu_jax.text import sequences


@pytest.mark.parametrize('seed', [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_keys_are_jax_own(seed):
  got, want = map(jax.random.key_data, (seeds.key(seed), jax.random.key(seed)))
  np.testing.assert_array_equal(got, want)


def test_keys_tell_seeds_apart_that_differ_in_their_upper_half():
  large = [3, 2**32 + 3, 2**33 + 3, 2**62 + 3, seeds.MOST]
  drawn = {
    tuple(jax.random.bits(seeds.key(seed), 4).tolist()) for seed in large
  }
  assert len(drawn) == len(large)


@pytest.mark.parametrize(
  'make',
  [
    lambda seed, make_run: make_run(seed=seed),
    lambda seed, make_run: make_run(train__stream_seed=seed),
    lambda seed, make_run: state.Settings(seed=seed),
    lambda seed, make_run: cases.Choice(seed=seed),
    lambda seed, make_run: study.Settings(records=('a', 'b'), seed=seed),
    lambda seed, make_run: seeds.check('--seed', seed),
  ],
  ids=['config', 'stream', 'records', 'autointerp', 'study', 'flag'],
)
@pytest.mark.parametrize('seed', [2**63, 2**64, 10**30, -2])
def test_other_seeds_are_refused(make, seed, make_run):
  make(2**63 - 1, make_run)
  with pytest.raises(errors.InputError, match=r'seed.*expected') as info:
    make(seed, make_run)
  assert str(seed) in str(info.value)
  assert '\n' not in str(info.value)


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    ({'train.steps': 2**31}, 'train.steps=2147483648 is out of range'),
    ({'train.batch_size': 2**19 + 1}, 'train.batch_size=524289 is out of'),
    ({'sae.num_latents': 2**24 + 1}, 'sae.num_latents=16777217 is out of'),
    ({'sae.capacity': 2**24 + 1}, 'sae.capacity=16777217 is out of'),
    ({'activations.sequences': 2**31}, 'activations.sequences=2147483648 is'),
    (
      {'objective.dead_after_tokens': 2**30 + 1},
      'dead_after_tokens=1073741825',
    ),
    ({'evaluation.sequences_per_batch': 2**24}, '2,147,483,648 positions of a'),
    (
      {'activations.sequences_per_batch': 2**24},
      'expected at most 2,147,483,6',
    ),
  ],
)
def test_counts_that_a_device_does_not_hold_are_refused(
  values, words, make_run
):
  with pytest.raises(errors.InputError, match=words):
    make_run(**{'text.context_length': 128} | values)


def test_batches_of_a_run_of_many_rows():
  """Which rows step 2^30 has: rows are counted in 64 bits."""

  class Shards:
    rows_per_shard, widths, scales = (2**33, 2**33), (1,), (1.0,)

    def open(self, index):
      return Rows(index)

  class Rows:
    def __init__(self, index):
      self.index = index

    def __len__(self):
      return 2**33

    def __getitem__(self, rows):
      start = self.index * 2**33
      place = np.arange(start + rows.start, start + rows.stop, dtype=np.float64)
      return place[:, None]

  batches = batches_lib.Batches(Shards(), 4, 0, num_steps=2**33)
  try:
    located = batches._locate(2**32)
  finally:
    batches.close()
  epoch, _, offset = located
  assert (epoch, offset) == (0, 2**32)


def test_sums_of_counts_pass_32_bits():
  part = {'fired_M': np.full(2, 2**31 - 1, np.int32), 'positions': 2**31 - 1}
  sums = metrics.merge(part, part, part)
  np.testing.assert_array_equal(sums['fired_M'], [3 * (2**31 - 1)] * 2)
  assert sums['positions'] == 3 * (2**31 - 1)


def batch(first, length=8):
  """Latent 1 fires once, at position 3 of a late sequence."""
  return firings.Firings(
    first,
    np.full((1, length), 5, np.int32),
    np.ones((1, length), bool),
    np.array([1]),
    np.array([3]),
    np.array([2.0], np.float32),
  )


def test_records_count_beyond_32_bits():
  totals, tokens = counts.Totals(2), counts.TokenCounts(2, 4, 2**31 - 1)
  totals.count_M[1] = totals.histogram_MH[1] = totals.positions[:] = 2**31 - 1
  tokens.token_MS[1, 0], tokens.count_MS[1, 0] = 5, 2**31 - 1
  one = batch(0)
  totals.add(one)
  tokens.add(one)
  tokens.settle()
  assert totals.count_M[1] == 2**31
  assert totals.positions[0] == 2**31 + 7
  assert totals.histogram_MH[1].max() == 2**31
  assert (tokens.token_MS[1, 0], tokens.count_MS[1, 0]) == (5, 2**31)


def test_records_name_places_beyond_32_bits():
  late = batch(2**31 - 2, length=64)
  assert late.origin == 64 * (2**31 - 2)
  assert late.sequence_F.tolist() == [2**31 - 2]
  gathered = state.State(state.Settings(width=4), 2, 10, 64)
  gathered.add(late)
  gathered.settle()
  kept = gathered.top.sequence_MR[gathered.top.key_MR != hashing.NOTHING]
  assert set(kept.tolist()) == {2**31 - 2}
  assert gathered.positions.place_E.tolist() == [64 * (2**31 - 2) + 3]


def test_lists_that_parquet_does_not_hold_are_refused():
  sizes = np.full(2, 2**30, np.int32)
  with pytest.raises(errors.InputError, match='2,147,483,648 elements'):
    columns._bounds(sizes)
  sizes[1] -= 1
  assert columns._bounds(sizes)[-1] == 2**31 - 1


def test_more_sequences_than_an_origin_names_are_refused(tmp_path, monkeypatch):
  rows = (np.full(3, i, np.int32) for i in range(5))
  sequences.write(rows, tmp_path / 'a.npy', max_rows=0)
  monkeypatch.setattr(sequences.shapes, 'LARGEST_INDEX', 5)
  assert len(sequences.open(tmp_path / 'a.npy')) == 5
  monkeypatch.setattr(sequences.shapes, 'LARGEST_INDEX', 4)
  with pytest.raises(errors.InputError, match='holds 5, expected at most 4'):
    sequences.open(tmp_path / 'a.npy')
