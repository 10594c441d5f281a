"""What latents are scored on, and the scores that need no endpoint."""

import asyncio

from helpers import small_world
from helpers import written_records
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.autointerp import answers
from jumprelu_jax.autointerp import background
from jumprelu_jax.autointerp import cases
from jumprelu_jax.autointerp import lookup
from jumprelu_jax.autointerp import prompts
from jumprelu_jax.autointerp import reasons
from jumprelu_jax.autointerp import scores
from jumprelu_jax.autointerp import study
from jumprelu_jax.autointerp import windows
from jumprelu_jax.autointerp.windows import Window
from jumprelu_jax.records import schema
from jumprelu_jax.text import pieces

ALL = cases.Choice(explaining=0, scoring=0, background=0, min_windows=2)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world') / 'records'
  return small_world.make(folder, window=16)


def case_of(records, latent, choice=ALL):
  return next(c for c in cases.load(records, choice) if c.latent == latent)


def window(tokens, activations=None, **place):
  activations = np.zeros(len(tokens)) if activations is None else activations
  return Window(np.array(tokens), np.array(activations, float), **place)


def row_of(records, latent, ask=None, measures=study.LOOKUPS, choice=ALL):
  setting = study.Setting(tuple(measures), records.pieces)
  case = case_of(records, latent, choice)
  return asyncio.run(study.score(case, setting, ask))


# Which windows.


def test_of_windows_that_overlap_the_first_is_kept():
  starts = [(0, 10), (0, 13), (0, 14), (1, 13), (0, 6), (0, 7)]
  found = windows.disjoint(
    window([1] * 4, sequence=sequence, start=start)
    for sequence, start in starts
  )
  # 13 overlaps 10, 7 overlaps 6 and 10; 14 and 6 only touch it.
  assert [(w.sequence, w.start) for w in found] == [
    (0, 10), (0, 14), (1, 13), (0, 6),
  ]  # fmt: skip


def test_each_stratum_is_dealt_evenly():
  some = [window([i], stratum=i % 3) for i in range(30)]
  explain, score = windows.halves(some, np.random.default_rng(0))
  for half in (explain, score):
    assert [w.stratum for w in half] == [0] * 5 + [1] * 5 + [2] * 5
  together = sorted(int(w.tokens_L[0]) for w in explain + score)
  assert together == list(range(30))


def test_half_of_the_picked_are_top_and_the_rest_go_round():
  strata = [schema.TOP] * 6 + [1] * 6 + [2] * 6
  some = [window([i], stratum=s) for i, s in enumerate(strata)]
  picked = [w.stratum for w in windows.pick(some, 7)]
  assert picked == [0, 0, 0, 0, 1, 2, 1]
  # Where one side lacks some the other fills up.
  assert [w.stratum for w in windows.pick(some[4:], 5)] == [0, 0, 1, 2, 1]
  assert [w.stratum for w in windows.pick(some[:7], 5)] == [0, 0, 0, 0, 1]
  assert len(windows.pick(some, 0)) == 18


def test_a_sample_takes_latents_of_all_frequencies():
  count_M = np.random.default_rng(1).permutation(100) * 10
  found = cases.sample(count_M, 10, seed=3)
  # Ranks are counts over ten: one in each ten.
  assert sorted(count_M[found] // 100) == list(range(10))
  np.testing.assert_array_equal(found, np.sort(found))
  np.testing.assert_array_equal(found, cases.sample(count_M, 10, seed=3))
  assert set(found) != set(cases.sample(count_M, 10, seed=4))
  np.testing.assert_array_equal(cases.sample(count_M, 0, 0), np.arange(100))
  np.testing.assert_array_equal(cases.sample(count_M, 200, 0), np.arange(100))


def test_each_latent_is_sampled_as_often_as_any_other():
  count_M = np.array([0, 0, 5, 5, 5, 80, 900])
  drawn = [cases.sample(count_M, 3, seed) for seed in range(3000)]
  assert all(len(set(one)) == 3 for one in drawn)
  share_M = np.bincount(np.concatenate(drawn)) / len(drawn)
  # Of a share p over 3,000 draws the deviation is below 0.0091.
  np.testing.assert_allclose(share_M, 3 / 7, atol=4 * 0.0091)


def positions(some):
  return {
    (w.sequence, w.start + i) for w in some for i in range(len(w.tokens_L))
  }


def examples(some):
  return [w for w in some if w.stratum != windows.BACKGROUND]


def test_no_position_of_text_is_in_both_halves(world):
  for latent in (small_world.TOKEN, small_world.BIGRAM, small_world.OTHER):
    case = case_of(world, latent)
    fitted, scored = examples(case.fitting), examples(case.scoring)
    assert len(fitted) >= 4
    assert len(scored) >= 4
    assert not positions(fitted) & positions(scored)
    assert not positions(case.fitting) & positions(case.scoring + case.silent)
    shown = positions(case.explaining)
    assert shown <= positions(fitted)


def test_the_background_would_overlap_if_it_were_not_kept_away(world):
  every = background.Background(world.background(), seed=0)
  both = every.fitting + every.scoring
  # As many windows as were drawn, for they do not overlap each other.
  assert sorted(both) == list(range(40))
  of_all = every.of_latent(small_world.TOKEN, both, ())
  for latent in (small_world.TOKEN, small_world.BIGRAM, small_world.OTHER):
    fitted = examples(case_of(world, latent).fitting)
    assert positions(fitted) & positions(of_all)


def same(one, other):
  return [w.tokens_L.tolist() for w in one] == [
    w.tokens_L.tolist() for w in other
  ]


def test_halves_are_of_the_seed_and_the_latent_alone(world):
  choice = cases.Choice(latents=3, min_windows=2, seed=5)
  few = list(cases.load(world, choice))
  assert len(few) == 3
  every = cases.Choice(latents=0, min_windows=2, seed=5)
  for case in few:
    other = case_of(world, case.latent, every)
    assert same(case.explaining, other.explaining)
    assert same(case.scoring, other.scoring)
  first, second = (
    case_of(world, small_world.TOKEN, cases.Choice(seed=seed))
    for seed in (0, 1)
  )
  assert not same(first.explaining, second.explaining)


def test_windows_hold_the_latents_own_activations(world):
  case = case_of(world, small_world.TOKEN)
  both = (*case.explaining, *case.fitting, *case.scoring, *case.silent)
  for one in both:
    np.testing.assert_array_equal(one.activations_L, 2.0 * (one.tokens_L == 3))
  assert any(w.fires for w in case.scoring if w.stratum == windows.BACKGROUND)
  assert not any(w.fires for w in case.silent)
  few = case_of(world, small_world.TOKEN, cases.Choice(0, 5, 6, 7))
  assert len(few.explaining) == 5
  assert len(examples(few.scoring)) == 6
  assert len(few.scoring) == 13


def test_latents_that_cannot_be_scored_have_a_reason(world):
  assert case_of(world, small_world.DEAD).reason == 'dead'
  rare = case_of(world, small_world.RARE)
  assert rare.reason == 'too_few_examples'
  assert '1 windows to explain from and 1 to score on' in rare.detail
  row = row_of(world, small_world.RARE, measures=study.MEASURES)
  for name in study.MEASURES:
    assert (row[name], row[f'{name}_reason']) == (None, 'too_few_examples')


def test_bad_choices_are_named(world, tmp_path):
  with pytest.raises(errors.InputError, match='min_windows=0: expected 1'):
    cases.Choice(min_windows=0)
  with pytest.raises(errors.InputError, match='expected some of token_lookup'):
    study.Setting(('token_lookups',), world.pieces)
  none = small_world.make(tmp_path / 'none', background=0)
  with pytest.raises(errors.InputError, match='no background windows'):
    list(cases.load(none, ALL))


# Scores.


def test_pearson_is_numpys():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 500)) + 1e4
  y += 0.3 * x
  want = np.corrcoef(x, y)[0, 1]
  assert scores.pearson(x, y) == pytest.approx(want, rel=1e-9)
  assert scores.pearson([0, 1, 2], [5, 3, 1]) == pytest.approx(-1)


def test_constants():
  assert scores.pearson([3, 3, 3], [0, 1, 0]) == 0
  with pytest.raises(reasons.Unscored, match='constant_truth'):
    scores.pearson([1, 2, 3], [4, 4, 4])


def test_accuracies_by_hand():
  said = [True, True, False, True, False]
  truth = [True, True, True, False, False]
  assert scores.accuracies(said, truth) == pytest.approx((7 / 12, 2 / 3, 1 / 2))


def test_averages_by_hand():
  mean, low, high = scores.average([1, 0], [3, 1])
  assert (mean, low, high) == (0.75, 0, 1)
  values = np.random.default_rng(0).normal(size=400)
  mean, low, high = scores.average(values, np.ones(400))
  assert mean == pytest.approx(values.mean())
  # The normal interval, which 400 values are enough for.
  half = 1.96 * values.std() / 20
  assert low == pytest.approx(mean - half, abs=0.15 * half)
  assert high == pytest.approx(mean + half, abs=0.15 * half)


def test_a_weighted_interval_is_that_of_a_ratio():
  rng = np.random.default_rng(0)
  values, weights = rng.normal(size=300), rng.exponential(size=300)
  mean, low, high = scores.average(values, weights)
  assert mean == pytest.approx(np.average(values, weights=weights))
  # The ratio's variance by the delta method.
  error = np.sqrt((weights**2 * (values - mean) ** 2).sum()) / weights.sum()
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.15)


# Lookups.


def unknown(*tokens):
  return window(tokens, [0] * len(tokens))


def test_tables_by_hand():
  some = [window([1, 2, 2], [0, 4, 2]), window([3, 2], [1, 6])]
  by_token = lookup.fit_tokens(some)
  # Of token 9 nothing is known: the mean of 0 4 2 1 6.
  np.testing.assert_allclose(by_token([unknown(1, 2, 3, 9)]), [0, 4, 1, 2.6])
  by_pair = lookup.fit_bigrams(some)
  # 1 and 3 begin a window; 2 after 1, 2 after 2, 2 after 3 are known; 2 that
  # begins a window and 1 after 2 are not, and 9 not even alone.
  given = [unknown(1, 2, 2, 1, 9), unknown(3, 2), unknown(2, 3)]
  np.testing.assert_allclose(by_pair(given), [0, 4, 2, 0, 2.6, 1, 6, 4, 1])


def test_an_indicator_of_a_token_is_all_in_its_table(world):
  for latent in (small_world.TOKEN, small_world.OTHER):
    row = row_of(world, latent)
    assert row['token_lookup'] == pytest.approx(1)
    assert row['token_lookup_reason'] is None


def test_a_bigram_is_in_the_bigrams_table_and_less_in_the_tokens(world):
  row = row_of(world, small_world.BIGRAM)
  # A window may begin with the second token, whose first is then not known.
  assert row['bigram_lookup'] > 0.9
  assert row['token_lookup'] < row['bigram_lookup'] - 0.1


def test_a_latent_that_always_fires_has_no_correlation(world):
  row = row_of(world, small_world.ALWAYS, measures=study.LOOKUPS)
  assert row['token_lookup'] is None
  assert row['token_lookup_reason'] == 'constant_truth'


def test_a_table_is_not_fitted_on_what_it_is_scored_on(tmp_path):
  rng = np.random.default_rng(0)
  # Every token is seen about once: a table knows nothing of the other half.
  tokens_NL = rng.permutation(40 * 64).reshape(40, 64)
  f_NL = rng.random(tokens_NL.shape) * (rng.random(tokens_NL.shape) < 0.1)
  folder = tmp_path / 'records'
  records = written_records.write(folder, tokens_NL, f_NL[None], top=16)
  row = row_of(records, 0)
  assert row['token_lookup'] == 0  # the same mean everywhere
  assert row['bigram_lookup'] == 0


# Prompts and answers.


def test_steps_by_hand():
  got = prompts.steps_of(np.array([0, 0.01, 0.5, 1.49, 2, 3]), 2.0)
  np.testing.assert_array_equal(got, [0, 1, 2, 7, 10, 10])


def vocabulary(*texts):
  return pieces.from_bytes([text.encode() for text in texts])


def test_the_explainer_sees_marks_and_strengths():
  shown = vocabulary('The', ' cat', ' <sat>', '.')
  some = [window([0, 1, 2], [0, 2, 1]), window([1, 3], [0.1, 0])]
  (_, system), (_, user) = prompts.explain(some, shown).messages
  assert 'The<< cat>>(10)<< <sat>>>(5)' in user
  assert '<< cat>>(1).' in user
  assert 'from 1 to 10' in system


def test_the_simulator_sees_tokens_and_nothing_else():
  shown = vocabulary('"', '\n', ' é')
  request = prompts.simulate('X', window([0, 1, 2], [0, 9, 0]), shown)
  user = request.messages[1][1]
  assert user.endswith('Tokens:\n1: "\\""\n2: "\\n"\n3: " é"')
  assert '9' not in user


@pytest.mark.parametrize(
  ('text', 'want'),
  [
    ('{"1": 0, "2": 10}', [0, 10]),
    ('```json\n{"1": 0,\n "2": 3}\n```', [0, 3]),
    ('<think>{"1": 9} or so</think>{"1": 1, "2": 1}', [1, 1]),
  ],
)
def test_numbers_are_read(text, want):
  assert answers.numbers(text, 2, 10) == want


@pytest.mark.parametrize(
  ('text', 'complaint'),
  [
    ('{"1": 0}', '1 entries; there must be 2'),
    ('{"1": 0, "2": 1, "3": 0}', '3 entries; there must be 2'),
    ('{"1": 0, "1": 1}', 'named 1 to 2'),
    ('{"1": 0, "2": 11}', '11 is not a whole number from 0 to 10'),
    ('{"1": 0, "2": -1}', '-1 is not'),
    ('{"1": 0, "2": 1.5}', '1.5 is not'),
    ('{"1": 0, "2": true}', 'true is not'),
    ('{"1": 0, "2": "x"}', '"x" is not'),
    ('{"1": 0, "2": }', 'not JSON'),
    ('{"1": 0, "2"', '0 JSON objects'),
    ('{"1": 0, "2": 1} {"1": 0, "2": 1}', '2 JSON objects'),
    ('0 0', '0 JSON objects'),
  ],
)
def test_numbers_that_are_none_are_told(text, complaint):
  with pytest.raises(answers.MalformedError, match=complaint):
    answers.numbers(text, 2, 10)


def test_explanations_are_one_line():
  assert answers.explanation('\n Active on cats. \nMore') == 'Active on cats.'
  with pytest.raises(answers.MalformedError, match='no sentence'):
    answers.explanation(' \n')
  with pytest.raises(answers.MalformedError, match='700 letters'):
    answers.explanation('x' * 700)


@pytest.mark.parametrize(
  'text',
  ["I'm sorry, but I can't help.", 'I cannot do that.', 'As an AI, I',
   'I’m unable to assist with that.', 'Sorry, no.', 'I am not able to say.'],
)  # fmt: skip
def test_a_refusal_is_no_explanation(text):
  for read in (answers.explanation, lambda t: answers.numbers(t, 2, 10)):
    with pytest.raises(reasons.Unscored) as found:
      read(text)
    assert found.value.reason == 'refusal'


def test_words_about_apologies_are_an_explanation():
  text = "Active on apologies, such as I'm sorry and sorry, in letters."
  assert answers.explanation(text) == text
