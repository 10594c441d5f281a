"""Latent records of a small model: against brute force, and what must hold."""

import dataclasses
import math
import os
import shutil
import signal

from helpers import corruption
from helpers import records_reference
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import preemption
from jumprelu_jax import sharding
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import columns
from jumprelu_jax.records import counts
from jumprelu_jax.records import effects
from jumprelu_jax.records import encode
from jumprelu_jax.records import firings as firings_lib
from jumprelu_jax.records import gather
from jumprelu_jax.records import hashing
from jumprelu_jax.records import neighbours
from jumprelu_jax.records import samples
from jumprelu_jax.records import schema
from jumprelu_jax.records import state as state_lib
from jumprelu_jax.records import write
from jumprelu_jax.sae import maps
from jumprelu_jax.sae import released
from jumprelu_jax.text import pieces

WHERE = sites.Site('resid_post', 0)
M, V, L = 24, 40, 12
# Each sample is smaller than what it is drawn from.
SETTINGS = state_lib.Settings(
  top=3,
  sampled=7,
  strata=3,
  width=5,
  token_slots=V,
  positions=60,
  background=6,
  seed=3,
)


@pytest.fixture(scope='module')
def model(tiny_lm):
  return huggingface.load(tiny_lm)


def text(sequences=21, seed=0):
  """Tokens with BOS at the start and here and there, and padding."""
  rng = np.random.default_rng(seed)
  tokens_NL = rng.integers(3, V, (sequences, L)).astype(np.int32)
  tokens_NL[:, 0] = 2
  tokens_NL[rng.random(tokens_NL.shape) < 0.1] = 2
  tokens_NL[-1, 3:] = 0
  return tokens_NL


def random_sae(num_latents=M, low=0.5, seed=0):
  """Latents that fire often and seldom; the last one never does."""
  rng = np.random.default_rng(seed)
  threshold = np.linspace(low, 16.0, num_latents)
  threshold[-1] = 1e6
  return released.SAE(
    W_enc=jnp.asarray(rng.normal(size=(16, num_latents)), 'float32'),
    b_enc=jnp.asarray(rng.normal(size=num_latents), 'float32'),
    W_dec=maps.unit_rows(
      jnp.asarray(rng.normal(size=(num_latents, 16)), 'float32')
    ),
    b_dec=jnp.zeros(16),
    threshold=jnp.asarray(threshold, 'float32'),
  )


def new_state(settings=SETTINGS, num_latents=M):
  return state_lib.State(settings, num_latents, V, L)


def gathered(model, sae, tokens_NL, mesh=None, stops=(), settings=SETTINGS):
  """A state for each part of the text."""
  mesh = mesh or sharding.make_mesh(1, 1)
  states = []
  bounds = [0, *stops, len(tokens_NL)]
  for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
    state = new_state(settings)
    for firings in encode.firings(
      model, sae, WHERE, tokens_NL, mesh, first, stop
    ):
      state.add(firings)
    states.append(state)
  return states


def written(folder, state, model, sae, tokens_NL):
  source = write.describe(
    state,
    sae='sae',
    model='tiny',
    site=WHERE.name,
    layer=WHERE.layer,
    architecture='jumprelu',
    text='text',
  )
  write.write(
    folder,
    state,
    source,
    model=model,
    W_dec_ME=sae.W_dec,
    target=WHERE,
    tokens_NL=tokens_NL,
    pieces=pieces.from_bytes([bytes([97 + i]) for i in range(V)]),
  )
  return schema.read(folder)


@pytest.fixture(scope='module')
def case(model, tmp_path_factory):
  """Records in batches of four sequences, and all activations at once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(encode, '_MOST_SEQUENCES', 4)
    sae, tokens_NL = random_sae(), text()
    (state,) = gathered(model, sae, tokens_NL)
  folder = tmp_path_factory.mktemp('records')
  found = written(folder, state, model, sae, tokens_NL)
  (x_NLD,) = transformer.tap(model, jnp.asarray(tokens_NL), (WHERE,))
  f_NLM = sae.encode(x_NLD.reshape(-1, 16)).reshape(*tokens_NL.shape, M)
  return found, sae, np.asarray(f_NLM), tokens_NL, tokens_NL > 2


def check_rows(table, rows):
  """Whole numbers are equal, others to 1e-5; lists of pairs too."""
  assert table.num_rows == len(rows)
  for name in rows[0]:
    for got, want in zip(
      table[name].to_pylist(), (row[name] for row in rows), strict=True
    ):
      if isinstance(got, list) and got and isinstance(got[0], dict):
        got = [tuple(pair.values()) for pair in got]
      np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  'name', [f'{n}.parquet' for n in schema.NAMES] + ['records.json', 'seal.json']
)
def test_a_damaged_file_is_told_of(case, tmp_path, name):
  folder = shutil.copytree(case[0].folder, tmp_path / 'records')

  def read():
    found = schema.read(folder)
    tables = found.latents(), found.examples(range(M)), found.background()
    rows = [table.to_pylist() for table in tables]
    return repr([found.source, found.texts.tolist(), *rows])

  kind = corruption.Kind(folder / name, 20, read)
  corruption.check(f'records: {name}', kind)


def test_latents_equal_the_reference(case):
  found, _, *data = case
  want = records_reference.latents(*data, found.source.edges, SETTINGS)
  check_rows(found.latents(), want)
  assert {row['count'] == 0 for row in want} == {True, False}
  assert math.isclose(
    found.source.l0, sum(row['count'] for row in want) / data[2].sum()
  )
  assert found.source.positions == data[2].sum()


def test_examples_equal_the_reference(case):
  found, _, *data = case
  want = records_reference.examples(*data, SETTINGS)
  check_rows(found.examples(range(M)), want)
  some = found.examples([3, 5])
  check_rows(some, [row for row in want if row['latent'] in (3, 5)])
  # There are more firings than are kept, and fewer, and sequences' ends.
  sizes = {sum(row['latent'] == m for row in want) for m in range(M)}
  assert {0, SETTINGS.top + SETTINGS.sampled} < sizes
  assert {0, L - SETTINGS.width} <= {row['start'] for row in want}


def test_background_equals_the_reference(case):
  found, _, *data = case
  check_rows(found.background(), records_reference.background(*data, SETTINGS))


def test_neighbours_equal_the_reference(case):
  found, sae, f_NLM, _, is_text_NL = case
  want = [
    {'similar': similar, 'together': together}
    for similar, together in zip(
      records_reference.similar(sae.W_dec),
      records_reference.together(f_NLM, is_text_NL, SETTINGS),
      strict=True,
    )
  ]
  check_rows(found.latents(), want)
  assert is_text_NL.sum() > SETTINGS.positions


def test_logits_equal_the_reference(case, model):
  found, sae, *_ = case
  gain_D = 1 + np.float64(model.final_norm_D)
  raised, lowered = records_reference.logits(sae.W_dec, gain_D, model.embed_VD)
  want = [
    {'promoted': high, 'suppressed': low}
    for high, low in zip(raised, lowered, strict=True)
  ]
  check_rows(found.latents(), want)


def test_blocks_change_no_neighbour(case, monkeypatch):
  _, sae, f_NLM, *_ = case
  place_E, latent_E = np.nonzero(f_NLM.reshape(-1, M) > 0)

  def both():
    return [
      np.concatenate(part)
      for blocks in (
        neighbours.by_decoder(sae.W_dec, 4),
        neighbours.by_firing(place_E, latent_E, M, 4),
      )
      for part in zip(*blocks, strict=True)
    ]

  whole = both()
  monkeypatch.setattr(neighbours, '_PAIRS', 3 * M)
  for got, want in zip(both(), whole, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_parts_merge_to_the_whole(case, model, tmp_path):
  found, sae, _, tokens_NL, _ = case
  first, *others = gathered(model, sae, tokens_NL, stops=(5, 6, 17))
  others.reverse()  # in whatever order
  for other in others:
    first.merge(other)
  merged = written(tmp_path, first, model, sae, tokens_NL)
  check_same(merged, found)


def check_same(got, want):
  assert got.source == want.source
  for table in ('latents', 'background'):
    rows = getattr(want, table)().to_pylist()
    pairs_to_tuples(rows)
    check_rows(getattr(got, table)(), rows)
  check_rows(got.examples(range(M)), want.examples(range(M)).to_pylist())


def pairs_to_tuples(rows):
  for row in rows:
    for name, value in row.items():
      if isinstance(value, list) and value and isinstance(value[0], dict):
        row[name] = [tuple(pair.values()) for pair in value]


@pytest.mark.parametrize('shape', [(8, 1), (2, 4)], ids=str)
def test_a_mesh_changes_no_record(case, tiny_lm, tmp_path, shape):
  found, sae, _, tokens_NL, _ = case
  mesh = sharding.make_mesh(*shape)
  on_mesh = huggingface.load(tiny_lm, mesh=mesh)
  (state,) = gathered(on_mesh, sae, tokens_NL, mesh)
  check_same(written(tmp_path, state, on_mesh, sae, tokens_NL), found)


def test_a_mesh_that_does_not_divide_the_latents_is_refused(model):
  mesh = sharding.make_mesh(1, 8)
  with pytest.raises(errors.InputError, match='use a divisor'):
    encode.check_mesh(mesh, 20)


def test_rows_with_many_latents_are_whole(model):
  sae, tokens_NL = random_sae(400, low=-3.0), text(5)
  sae = sae.replace(threshold=jnp.full(400, 0.01))
  mesh = sharding.make_mesh(1, 1)
  (firings,) = encode.firings(model, sae, WHERE, tokens_NL, mesh)
  (x_NLD,) = transformer.tap(model, jnp.asarray(tokens_NL), (WHERE,))
  f_NM = np.array(sae.encode(x_NLD.reshape(-1, 16)))
  f_NM[(tokens_NL <= 2).ravel()] = 0
  assert (f_NM > 0).sum(axis=1).max() > 128
  latent, place = np.nonzero(f_NM.T > 0)
  np.testing.assert_array_equal(firings.latent_F, latent)
  np.testing.assert_array_equal(firings.place_F, place)
  # Programs of other shapes round sums of some tens differently.
  np.testing.assert_allclose(
    firings.value_F, f_NM[place, latent], rtol=1e-5, atol=2e-5
  )


def test_nothing_fires_beyond_the_limits(model):
  """Limits at the site, and at a later one."""
  sae, tokens_NL = random_sae(), text(5)
  later = sites.Site('resid_post', 1)
  norms = [
    np.linalg.norm(np.float64(x_NLD), axis=-1)
    for x_NLD in transformer.tap(model, jnp.asarray(tokens_NL), (WHERE, later))
  ]
  limits = tuple(
    (site, float(np.quantile(norm_NL, 0.7)))
    for site, norm_NL in zip((WHERE, later), norms, strict=True)
  )
  want_NL = tokens_NL > 2
  for norm_NL, (_, largest) in zip(norms, limits, strict=True):
    want_NL &= norm_NL <= largest
  mesh = sharding.make_mesh(1, 1)
  arguments = model, sae, WHERE, tokens_NL, mesh
  (before,) = encode.firings(*arguments)
  (after,) = encode.firings(*arguments, limits=limits)
  np.testing.assert_array_equal(after.is_text_BL, want_NL)
  is_kept = want_NL.ravel()[before.place_F]
  assert 0.1 < is_kept.mean() < 0.9
  for name in ('latent_F', 'place_F', 'value_F'):
    np.testing.assert_array_equal(
      getattr(after, name), getattr(before, name)[is_kept]
    )


class StopError(Exception):
  pass


def test_a_killed_pass_ends_with_the_same_bits(model, tmp_path, monkeypatch):
  monkeypatch.setattr(encode, '_MOST_SEQUENCES', 4)
  monkeypatch.setattr(gather, '_TOKENS_PER_SETTLING', 8 * L)
  monkeypatch.setattr(gather, '_SECONDS_PER_CHECKPOINT', 0.0)
  # Few slots for tokens, so that what they leave out shows when they settle.
  settings = dataclasses.replace(SETTINGS, token_slots=3)
  arguments = (model, random_sae(), WHERE, text(61), sharding.make_mesh(1, 1))

  def run(path, state):
    gather.gather(state, *arguments, path)
    return state

  whole = run(tmp_path / 'whole.npz', new_state(settings))
  killed, add = new_state(settings), state_lib.State.add
  batches = []

  def add_some(state, firings):
    batches.append(firings.first)
    if len(batches) == 8:
      raise StopError
    add(state, firings)

  monkeypatch.setattr(state_lib.State, 'add', add_some)
  with pytest.raises(StopError):
    run(tmp_path / 'killed.npz', killed)
  again = run(tmp_path / 'killed.npz', new_state(settings))
  # It went on from a checkpoint, and did the batch that was lost again.
  assert 0 < batches[8] <= batches[7]
  whole.save(tmp_path / 'whole.npz', 61)
  again.save(tmp_path / 'killed.npz', 61)
  with (
    np.load(tmp_path / 'whole.npz') as want,
    np.load(tmp_path / 'killed.npz') as got,
  ):
    assert set(got.files) == set(want.files)
    for name in want.files:
      np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_a_pass_that_is_asked_to_end_does(model, tmp_path):
  arguments = (model, random_sae(), WHERE, text(61), sharding.make_mesh(1, 1))
  with preemption.heard():
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(preemption.PreemptedError, match='goes on from its'):
      gather.gather(new_state(SETTINGS), *arguments, tmp_path / 'state.npz')


def test_a_hash_is_that_of_the_reference():
  keys = np.array([0, 1, 5, 2**40])
  got = hashing.of(7, 2, keys, keys[::-1])
  want = [
    records_reference.hash_of(7, 2, a, b)
    for a, b in zip(keys, keys[::-1], strict=True)
  ]
  assert got.tolist() == want


def firings_of(f_NLM, first=0):
  """Firings of given activations; all positions are text."""
  N, length, num_latents = f_NLM.shape
  rows_NM = np.float32(f_NLM.reshape(-1, num_latents))
  latent_NM = np.broadcast_to(np.arange(num_latents), rows_NM.shape)
  tokens_NL = np.arange(N * length, dtype=np.int32).reshape(N, length) % V
  return firings_lib.by_latent(
    first, tokens_NL, tokens_NL >= 0, rows_NM, latent_NM, num_latents
  )


def test_windows_by_hand():
  f_NLM = np.zeros((2, 6, 2))
  f_NLM[0, [0, 1, 5], 0] = [1, 2, 3]
  f_NLM[1, [0, 3, 4], 0] = [4, 5, 6]
  f_NLM[1, 2, 1] = 7
  firings = firings_of(f_NLM)
  assert firings.value_F.tolist() == [1, 2, 3, 4, 5, 6, 7]
  got = firings_lib.windows(firings, np.array([0, 2, 4, 5, 6]), 3)
  assert got.tolist() == [[1, 2, 0], [0, 0, 3], [0, 5, 6], [5, 6, 0], [0, 7, 0]]
  assert firings_lib.largest_of_sequences(firings).tolist() == [2, 5, 6]


def test_every_firing_is_drawn_equally_often():
  """300 latents fire at each of 40 places; 10 of a latent's are kept."""
  rng = np.random.default_rng(0)
  f_NLM = rng.uniform(0.1, 1, (4, 10, 300))
  kept = samples.Samples(300, 10, 3)
  for n in range(4):
    firings = firings_of(f_NLM[n : n + 1], n)
    kept.add(firings, *samples.uniformly(firings, seed=5))
  kept.settle()
  place = kept.sequence_MR * 10 + kept.position_MR
  assert all(len(set(row)) == 10 for row in place.tolist())
  times = np.bincount(place.ravel(), minlength=40)
  # 300 draws of 10 of 40: mean 75, variance 300 * 1/4 * 3/4 * 40/39. The sum of
  # squares is chi-squared with 39 degrees of freedom, below 72.1 in 99.9%.
  assert ((times - 75) ** 2).sum() / (300 * 3 / 16 * 40 / 39) < 72.1


@pytest.mark.parametrize('waiting', [1, 10**9])
def test_token_counts_keep_their_promise(monkeypatch, waiting):
  """Two hosts; Zipf's tokens for all latents but the first, which has four."""
  monkeypatch.setattr(counts, '_FEWEST_WAITING', waiting)
  monkeypatch.setattr(counts, '_WAITING_PER_SLOT', 0)
  rng = np.random.default_rng(0)
  hosts = [counts.TokenCounts(5, 4, 1000) for _ in range(2)]
  exact_MV = np.zeros((5, 1000), np.int64)
  for batch in range(20):
    latent_F = np.sort(rng.integers(0, 5, 300))
    token_F = np.minimum(rng.zipf(1.3, 300), 999).astype(np.int32)
    token_F[latent_F == 0] %= 4
    np.add.at(exact_MV, (latent_F, token_F), 1)
    ones = np.ones(300, np.float32)
    firings = firings_lib.Firings(
      0, token_F[None], ones[None] > 0, latent_F, np.arange(300), ones
    )
    hosts[batch % 2].add(firings)
  hosts[0].merge(hosts[1])
  arrays = hosts[0].arrays()
  assert hosts[0].error == 1 / 5
  assert dict(zip(*(a[0].tolist() for a in arrays.values()), strict=True)) == (
    dict(enumerate(exact_MV[0, :4].tolist()))
  )
  for latent in range(1, 5):
    estimate_V = np.zeros(1000, np.int64)
    estimate_V[arrays['token_MS'][latent]] = arrays['count_MS'][latent]
    missing_V = exact_MV[latent] - estimate_V
    assert missing_V.min() >= 0
    assert missing_V.max() <= exact_MV[latent].sum() / 5
    assert missing_V.max() > 0
    assert (np.diff(arrays['count_MS'][latent]) <= 0).all()


def firings_on(*tokens):
  """Firings of one latent, on these tokens."""
  token_1F = np.array([tokens], np.int32)
  ones = np.ones(len(tokens), np.float32)
  none = np.zeros(len(tokens), np.int64)
  return firings_lib.Firings(
    0, token_1F, ones[None] > 0, none, np.arange(len(tokens)), ones
  )


def test_a_token_that_returns_is_not_shut_out(monkeypatch):
  """By hand, with one slot: 7 five times and 8 six, but 8 never at once."""
  monkeypatch.setattr(counts, '_FEWEST_WAITING', 1)
  monkeypatch.setattr(counts, '_WAITING_PER_SLOT', 0)
  kept = counts.TokenCounts(1, 1, 10)
  kept.add(firings_on(7, 7, 7, 7, 7, 8, 8))  # 7: 5 - 2
  assert (kept.token_MS.item(), kept.count_MS.item()) == (7, 3)
  kept.add(firings_on(8, 8))  # 7: 3 - 2
  assert (kept.token_MS.item(), kept.count_MS.item()) == (7, 1)
  kept.add(firings_on(8, 8))  # 8: 2 - 1
  assert (kept.token_MS.item(), kept.count_MS.item()) == (8, 1)


def test_memory_is_what_the_docstring_says():
  state = state_lib.State(state_lib.Settings(), 1000, V, 128)
  state.settle()
  arrays = [
    array
    for part in vars(state).values()
    if part is not state.settings
    for array in part.arrays().values()
  ]
  assert 10_900 < sum(array.nbytes for array in arrays) / 1000 < 11_500


def test_heads_reach_the_logits_through_their_output(model):
  """A latent's direction added to attn_z and to attn_out gives the same."""
  z_MK = np.random.default_rng(0).normal(size=(3, 12))
  got = effects.directions(
    model, sites.Site('attn_z', 1), jnp.asarray(z_MK, 'float32')
  )
  W_o = np.float64(model.blocks.W_o_HKD[1]).reshape(12, 16)
  gain = 1 + np.float64(model.blocks.post_attn_norm_D[1])
  np.testing.assert_allclose(got, (z_MK @ W_o) * gain, rtol=1e-4, atol=1e-5)
  assert effects.directions(model, sites.Site('mlp_in', 1), z_MK) is None


def test_an_mlps_input_has_no_effects(case, model):
  _, sae, *_ = case
  none = columns._effects(model, sae.W_dec, sites.Site('mlp_in', 0))
  assert [column.to_pylist() for column in none] == [[[]] * M] * 2


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'top': 0}, 'expected 1 or more'),
    ({'seed': -1}, 'expected a seed from 0'),
    ({'sampled': 2}, 'too few for 3 strata'),
    ({'width': L + 1}, 'longer than a sequence'),
  ],
  ids=str,
)
def test_settings_that_cannot_be_are_refused(change, message):
  with pytest.raises(errors.InputError, match=message):
    new_state(dataclasses.replace(SETTINGS, **change))


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
  with pytest.raises(errors.InputError, match='holds no records.json'):
    schema.read(tmp_path)
  (tmp_path / 'records.json').write_text('{"version": 99}')
  with pytest.raises(errors.InputError, match='Make the records again'):
    schema.read(tmp_path)
