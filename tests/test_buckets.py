"""Buckets: each text position once, shuffled, a function of seed and index."""

import collections
import itertools
import tracemalloc

from helpers import small_plan
import numpy as np
import pytest

from jumprelu_jax.activations import buckets


def some_plans(**values):
  """Yields plans of random sequences and sizes, the last bucket often short."""
  rng = np.random.default_rng(5)
  for seed in range(12):
    size, length = rng.integers(1, 40), rng.integers(2, 20)
    tokens_NL = small_plan.some_tokens(size, length, seed)
    yield small_plan.make_plan(
      tokens_NL,
      **{
        'sequences_per_bucket': int(rng.integers(1, 9)),
        'sequences_per_batch': int(rng.integers(1, 6)),
        'seed': seed,
        **values,
      },
    )


def make_all(plan, tap=small_plan.tap_two):
  return [buckets.make(plan, tap, i) for i in range(plan.num_buckets)]


def assert_same(got, expected):
  for bucket, other in zip(got, expected, strict=True):
    np.testing.assert_array_equal(bucket.origin_N3, other.origin_N3)
    for rows_ND, other_ND in zip(bucket.rows, other.rows, strict=True):
      np.testing.assert_array_equal(rows_ND, other_ND)


def test_every_text_position_is_in_one_bucket_once_and_no_special_one():
  for plan in some_plans():
    expected = {
      (sequence, position)
      for sequence, tokens in enumerate(plan.tokens_NL.tolist())
      for position, token in enumerate(tokens)
      if token not in small_plan.SPECIAL
    }
    found = collections.Counter(
      (sequence, position)
      for bucket in make_all(plan)
      for _, sequence, position in bucket.origin_N3.tolist()
    )
    assert set(found) == expected
    assert set(found.values()) <= {1}


def test_rows_of_both_sites_are_of_the_position_that_their_origin_says():
  for plan in some_plans():
    x_NLD = small_plan.telling(plan.tokens_NL)
    for bucket in make_all(plan):
      token, sequence, position = bucket.origin_N3.T
      assert bucket.origin_N3.dtype == np.int32
      first_ND, second_ND = bucket.rows
      np.testing.assert_array_equal(token, plan.tokens_NL[sequence, position])
      np.testing.assert_array_equal(first_ND, x_NLD[sequence, position])
      np.testing.assert_array_equal(second_ND, -first_ND[:, 1:])
      assert bucket.outliers == 0


def test_sequences_of_a_bucket_are_its_own():
  for plan in some_plans():
    sequences = [set(plan.sequences_of(i)) for i in range(plan.num_buckets)]
    sizes = [len(some) for some in sequences]
    assert sum(sizes) == len(plan.tokens_NL) == len(set().union(*sequences))
    assert set(sizes[:-1]) <= {plan.sequences_per_bucket}
    for bucket, some in zip(make_all(plan), sequences, strict=True):
      assert set(bucket.origin_N3[:, 1]) <= some


def test_buckets_do_not_depend_on_the_size_of_batches():
  for plan in some_plans(sequences_per_bucket=7):
    expected = make_all(plan)
    for size in (1, 3, 7, 50):
      other = small_plan.make_plan(
        plan.tokens_NL,
        sequences_per_bucket=7,
        sequences_per_batch=size,
        seed=plan.seed,
      )
      assert_same(make_all(other), expected)


def test_the_model_sees_batches_of_one_shape():
  seen = []

  def tap(tokens_BL):
    seen.append((tokens_BL.shape, tokens_BL.dtype.name, tokens_BL[:, 0]))
    return small_plan.tap_two(tokens_BL)

  tokens_NL = small_plan.some_tokens(8, 6)
  plan = small_plan.make_plan(
    tokens_NL, sequences_per_bucket=5, sequences_per_batch=2
  )
  make_all(plan, tap)
  assert {(shape, dtype) for shape, dtype, _ in seen} == {((2, 6), 'int32')}
  # 5 = 2 + 2 + 1 and 3 = 2 + 1 sequences: two batches are filled up.
  filled_up = [np.sum(first_B == small_plan.PAD) for _, _, first_B in seen]
  assert filled_up == [0, 0, 1, 0, 1]


def test_rows_per_bucket_are_what_make_gives():
  for plan in some_plans():
    sizes = tuple(len(bucket.origin_N3) for bucket in make_all(plan))
    assert plan.rows_per_bucket() == sizes


def test_tokens_that_are_done_add_up():
  for plan in some_plans():
    for index in range(plan.num_buckets):
      done = []
      buckets.make(plan, small_plan.tap_two, index, done.append)
      assert sum(done) == plan.tokens_of(index)


def test_neighbours_in_a_bucket_are_not_neighbours_in_the_text():
  tokens_NL = np.full((64, 65), 7, np.int32)
  tokens_NL[:, 0] = small_plan.BOS
  plan = small_plan.make_plan(tokens_NL, sequences_per_bucket=32)
  origins = [bucket.origin_N3 for bucket in make_all(plan)]
  assert [len(origin_N3) for origin_N3 in origins] == [2048, 2048]
  for origin_N3 in origins:
    step_N3 = np.diff(origin_N3, axis=0)
    follows = (step_N3[:, 1] == 0) & (np.abs(step_N3[:, 2]) == 1)
    # Of 2047 pairs a random one is such with chance 2 * 32 * 63 / 2048^2: two.
    assert follows.sum() < 12
    assert np.mean(step_N3[:, 1] == 0) < 0.06  # 1 / 32 = 0.031 if random
  # Sequences are of the whole text.
  assert not set(origins[0][:, 1]) <= set(range(32))


def test_rows_are_shuffled_by_seed_and_bucket():
  tokens_NL = np.full((64, 65), 7, np.int32)
  places = []
  for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
    plan = small_plan.make_plan(tokens_NL, sequences_per_bucket=32, seed=seed)
    origin_N3 = buckets.make(plan, small_plan.tap_two, index).origin_N3
    # Where each position went, counted in the order that the model saw them.
    rank = {s: i for i, s in enumerate(plan.sequences_of(index).tolist())}
    rank_N = [rank[sequence] for sequence in origin_N3[:, 1].tolist()]
    places.append(np.lexsort((origin_N3[:, 2], rank_N)))
  for one, other in itertools.combinations(places, 2):
    assert np.mean(one == other) < 0.01  # 1 / 2080 if independent


def test_buckets_are_a_function_of_the_seed():
  tokens_NL = small_plan.some_tokens(30, 12)
  plans = [small_plan.make_plan(tokens_NL, seed=seed) for seed in (3, 3, 4)]
  first, same = [make_all(plan) for plan in plans[:2]]
  assert_same(first, same)
  assert plans[0].sequences_of(0).tolist() != plans[2].sequences_of(0).tolist()
  # Rows are shuffled by the seed too, in a bucket of all sequences.
  whole = [
    small_plan.make_plan(tokens_NL, seed=seed, sequences_per_bucket=30)
    for seed in (3, 4)
  ]
  one, two = [make_all(plan)[0].origin_N3 for plan in whole]
  assert sorted(one.tolist()) == sorted(two.tolist())
  assert np.mean(np.all(one == two, axis=1)) < 0.2


def test_a_bucket_is_made_without_those_before_it():
  tokens_NL = small_plan.some_tokens(23, 9)
  in_order = make_all(small_plan.make_plan(tokens_NL))
  backwards = [
    buckets.make(small_plan.make_plan(tokens_NL), small_plan.tap_two, i)
    for i in reversed(range(5))
  ]
  assert_same(backwards[::-1], in_order)


# Norms at two sites of one sequence of eight text tokens, 3 to 10.
FIRST = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0, 8.0)
SECOND = (1.0, 1.0, 1.0, 9.5, 1.0, 1.0, 1.0, 10.5)


def tap_norms(tokens_BL):
  """Rows (3/5 n, 4/5 n) of norm n; special positions have enormous norms."""
  tables = [np.full(11, 1e6, np.float32) for _ in range(2)]
  for table, norms in zip(tables, (FIRST, SECOND), strict=True):
    table[3:] = norms
  direction_D = np.array([0.6, 0.8], np.float32)
  return tuple(table[tokens_BL][..., None] * direction_D for table in tables)


@pytest.mark.parametrize(
  ('multiple', 'dropped'),
  # Medians by hand: (4 + 5) / 2 = 4.5 of the first, 1 of the second site.
  [
    (0.0, set()),
    (1000.0, set()),
    (15.0, {9}),  # 70 > 67.5
    (10.0, {9, 10}),  # 70 > 45, and 10.5 > 10
    (9.5, {9, 10}),  # 9.5 is no more than 9.5 * 1
    (9.0, {6, 9, 10}),  # 9.5 > 9 too
  ],
)
def test_outliers_are_dropped_at_all_sites_alike(multiple, dropped):
  tokens_NL = np.array([[small_plan.BOS, *range(3, 11)]], np.int32)
  plan = small_plan.make_plan(tokens_NL, max_norm_multiple=multiple)
  bucket = buckets.make(plan, tap_norms, 0)
  tokens = bucket.origin_N3[:, 0]
  assert set(tokens) == set(range(3, 11)) - dropped
  assert len(tokens) == 8 - len(dropped)
  assert bucket.outliers == len(dropped)
  for rows_ND, norms in zip(bucket.rows, (FIRST, SECOND), strict=True):
    expected_N = np.array(norms)[tokens - 3]
    assert rows_ND.flags.c_contiguous
    np.testing.assert_allclose(rows_ND[:, 0], 0.6 * expected_N, rtol=1e-6)
    np.testing.assert_allclose(rows_ND[:, 1], 0.8 * expected_N, rtol=1e-6)


def test_what_is_kept_keeps_its_order():
  tokens_NL = small_plan.some_tokens(40, 30, seed=1)
  plans = [
    small_plan.make_plan(
      tokens_NL, sequences_per_bucket=40, max_norm_multiple=multiple
    )
    for multiple in (0.0, 1.2)
  ]
  every, kept = [buckets.make(plan, small_plan.tap_two, 0) for plan in plans]
  norm_N = np.sqrt((every.rows[0].astype(np.float64) ** 2).sum(1))
  other_N = np.sqrt((every.rows[1].astype(np.float64) ** 2).sum(1))
  keep_N = (norm_N <= 1.2 * np.median(norm_N)) & (
    other_N <= 1.2 * np.median(other_N)
  )
  assert 50 < keep_N.sum() < len(keep_N) - 50
  np.testing.assert_array_equal(kept.origin_N3, every.origin_N3[keep_N])
  for site in (0, 1):
    np.testing.assert_array_equal(kept.rows[site], every.rows[site][keep_N])
  assert kept.outliers == np.sum(~keep_N)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_failing_model_is_not_taken_for_outliers(bad):
  tokens_NL = small_plan.some_tokens(5, 8)

  def tap(tokens_BL):
    first, second = small_plan.tap_two(tokens_BL)
    first[..., 1][tokens_BL >= 3] = bad
    second[:, 3] = bad
    return first, second

  plan = small_plan.make_plan(tokens_NL, max_norm_multiple=5.0)
  bucket = buckets.make(plan, tap, 0)
  # They are still there, for the store to refuse.
  assert (bucket.origin_N3[:, 2] == 3).any()
  assert not np.isfinite(bucket.rows[0]).all()
  assert not np.isfinite(bucket.rows[1]).all()


def test_a_bucket_without_text_has_no_rows():
  tokens_NL = np.full((3, 4), small_plan.PAD, np.int32)
  for multiple in (0.0, 5.0):
    plan = small_plan.make_plan(tokens_NL, max_norm_multiple=multiple)
    bucket = buckets.make(plan, small_plan.tap_two, 0)
    assert [rows_ND.shape for rows_ND in bucket.rows] == [(0, 3), (0, 2)]
    assert bucket.origin_N3.shape == (0, 3)
    assert bucket.outliers == 0


@pytest.mark.parametrize('max_norm_multiple', [0.0, 1.0])
def test_memory_is_the_rows_of_a_bucket_and_two_batches(max_norm_multiple):
  length, wide = 64, 512
  tokens_NL = np.full((1024, length), 7, np.int32)
  tokens_NL[:, 0] = small_plan.BOS
  plan = small_plan.make_plan(
    tokens_NL,
    sequences_per_bucket=256,
    sequences_per_batch=4,
    max_norm_multiple=max_norm_multiple,
  )
  rng = np.random.default_rng(0)

  def tap(tokens_BL):
    return (rng.random((*tokens_BL.shape, wide), np.float32),)

  bucket_bytes = 256 * (length - 1) * wide * 4  # 33 MB, a quarter of the text
  batch_bytes = 4 * length * wide * 4  # 0.5 MB
  tracemalloc.start()
  try:
    bucket = buckets.make(plan, tap, 1)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  # Two batches, one's rows on their way, a hundred bytes for each row, and the
  # 512 rows whose norms are taken.
  allowed = bucket_bytes + 3 * batch_bytes + 100 * 256 * length
  allowed += 3 * 512 * wide * 4 if max_norm_multiple else 0
  assert bucket_bytes < peak < allowed
  assert (bucket.outliers > 1000) == (max_norm_multiple > 0)
