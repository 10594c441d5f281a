"""Scores on disk, and architectures held against each other."""

import csv
import json
import math

import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax.autointerp import compare
from jumprelu_jax.autointerp import table
from jumprelu_jax.plot import autointerp as plot

ABOUT = {
  'model': 'tiny', 'layer': 1, 'site': 'resid_post', 'num_latents': 64,
  'architecture': 'jumprelu', 'l0': 10.0, 'text': 'text',
  'settings': {'seed': 0}, 'prompts_version': 1, 'answered_by': 'm',
}  # fmt: skip
MEASURES = ('token_lookup', 'simulation')


def rows_of(scores, frequencies=None):
  frequencies = [0.1] * len(scores) if frequencies is None else frequencies
  return [
    {
      'latent': i,
      'frequency': frequency,
      'token_lookup': score,
      'token_lookup_reason': 'dead' if score is None else None,
      'simulation': None,
      'simulation_reason': 'refusal',
      'explanation': 'Active on "a,b"\nand <c>.',
      'detail': None,
    }
    for i, (score, frequency) in enumerate(
      zip(scores, frequencies, strict=True)
    )
  ]


def save(folder, scores, frequencies=None, **about):
  table.write(folder, rows_of(scores, frequencies), MEASURES, ABOUT | about)
  return folder


def above(count, of):
  return [0.95] * count + [0.2] * (of - count)


def test_a_summary_by_hand(tmp_path):
  folder = save(tmp_path / 'a', [1.0, 0.5, None, 0.0], [0.4, 0.1, 0.0, 0.3])
  found = table.read(folder)
  summary = found.about['scores']['token_lookup']
  assert (summary['scored'], summary['latents']) == (3, 4)
  assert summary['reasons'] == {'dead': 1}
  assert summary['mean'] == pytest.approx(0.5)
  assert summary['weighted_mean'] == pytest.approx((0.4 + 0.05) / 0.8)
  assert summary['above_0.9'] == pytest.approx(1 / 3)
  nothing = found.about['scores']['simulation']
  assert nothing['mean'] is None
  assert nothing['reasons'] == {'refusal': 4}
  with open(folder / 'scores.csv', newline='') as file:
    lines = list(csv.DictReader(file))
  assert [line['token_lookup'] for line in lines] == ['1', '0.5', '', '0']
  assert lines[0]['explanation'] == 'Active on "a,b"\nand <c>.'
  assert found.rows == rows_of([1.0, 0.5, None, 0.0], [0.4, 0.1, 0.0, 0.3])
  shown = table.format_summary(found.about)
  assert 'token_lookup: 1 latents dead: it never fires' in shown


def test_what_is_no_folder_of_scores_is_named(tmp_path):
  with pytest.raises(errors.InputError, match='score` has finished'):
    table.read(tmp_path)
  folder = save(tmp_path / 'a', [1.0])
  (folder / 'scores.parquet').write_bytes(b'PAR1')
  with pytest.raises(errors.InputError, match='(?i)score its records again'):
    table.read(folder)


def test_scores_made_in_other_ways_are_not_compared(tmp_path):
  first = save(tmp_path / 'a', [1.0])
  other = save(tmp_path / 'b', [1.0], settings={'seed': 1})
  with pytest.raises(errors.InputError, match="settings={'seed': 1}"):
    compare.read([first, other])
  with pytest.raises(errors.InputError, match='twice'):
    compare.read([first, first])


def three(tmp_path):
  return compare.read(
    [
      save(tmp_path / 'a', [0.2, 0.4], l0=10.0),
      save(tmp_path / 'b', [0.4, 0.6], l0=11.0),
      save(
        tmp_path / 'c', [0.9, 0.7], [0.3, 0.1], architecture='topk', l0=10.5
      ),
      save(tmp_path / 'd', [0.1], architecture='topk', l0=20.0),
    ]
  )


def test_the_table_by_hand(tmp_path):
  found = compare.table_of(three(tmp_path), tolerance=0.15)
  rows = {
    (round(row['l0_group'], 3), row['architecture']): row
    for row in found
    if row['measure'] == 'token_lookup'
  }
  assert set(rows) == {(10.5, 'jumprelu'), (10.5, 'topk'), (20.0, 'topk')}
  ours = rows[10.5, 'jumprelu']
  assert (ours['l0'], ours['num_saes'], ours['scored']) == (10.5, 2, 4)
  assert ours['mean'] == pytest.approx(0.4)
  # Of two SAEs the interval is their range.
  assert (ours['low'], ours['high']) == pytest.approx((0.3, 0.5))
  assert ours['interval'] == 'range'
  theirs = rows[10.5, 'topk']
  assert theirs['interval'] == 'latents'
  assert theirs['weighted_mean'] == pytest.approx(0.85)
  assert (theirs['low'], theirs['high']) == pytest.approx((0.7, 0.9))
  assert all(
    row['mean'] is None for row in found if row['measure'] == 'simulation'
  )


def test_l0s_are_matched_within_the_tolerance(tmp_path):
  found = compare.table_of(three(tmp_path), tolerance=0.02)
  groups = {row['l0_group'] for row in found}
  assert groups == {10.0, 10.5, 11.0, 20.0}
  with pytest.raises(errors.InputError, match='l0_tolerance=-1'):
    compare.table_of(three(tmp_path / 'again'), tolerance=-1)


def test_odds_are_the_closed_form_of_a_table(tmp_path):
  saes = compare.read(
    [
      save(tmp_path / 'a', above(30, 100)),
      # Of one SAE each, L0 cannot be told from the architecture: no term.
      save(tmp_path / 'b', above(12, 80), architecture='gated', l0=11.0),
      save(tmp_path / 'c', above(33, 100), architecture='topk', l0=10.5),
      save(tmp_path / 'd', above(0, 50), architecture='random'),
    ]
  )
  rows = compare.odds(saes, 'token_lookup', 'jumprelu')
  found = {row['architecture']: row for row in rows}
  for name, high, low in (('gated', 12, 68), ('topk', 33, 67)):
    want = math.log((30 / 70) / (high / low))
    error = math.sqrt(1 / 30 + 1 / 70 + 1 / high + 1 / low)
    row = found[name]
    assert math.log(row['odds_ratio']) == pytest.approx(want, rel=1e-5)
    z = 1.959964
    assert math.log(row['low']) == pytest.approx(want - z * error, rel=1e-4)
    assert math.log(row['high']) == pytest.approx(want + z * error, rel=1e-4)
    assert (row['above'], row['latents']) == (high, high + low)
  # None of these is above: no finite odds, and the others' are not touched.
  assert found['random']['odds_ratio'] is None
  assert 'no finite odds' in found['random']['note']
  with pytest.raises(errors.InputError, match='give one of gated, jumprelu'):
    compare.odds(saes, 'token_lookup', 'relu')


def test_odds_are_at_the_same_l0(tmp_path):
  # Scores fall with L0 alone, and the two are there in other proportions.
  rng = np.random.default_rng(0)

  def sae(name, architecture, l0, count):
    share = 1 / (1 + np.exp(1.2 * np.log(l0 / 20)))
    scores = np.where(rng.random(count) < share, 0.95, 0.1).tolist()
    return save(tmp_path / name, scores, architecture=architecture, l0=l0)

  saes = compare.read(
    [
      sae('a', 'jumprelu', 10.0, 4000),
      sae('b', 'jumprelu', 40.0, 1000),
      sae('c', 'topk', 10.0, 1000),
      sae('d', 'topk', 40.0, 4000),
    ]
  )
  (row,) = compare.odds(saes, 'token_lookup', 'jumprelu')
  # Without the term for L0 it would be 2.6.
  assert row['low'] < 1 < row['high']
  assert row['odds_ratio'] == pytest.approx(1, abs=0.15)


def test_no_odds_where_nothing_is_above(tmp_path):
  saes = compare.read(
    [save(tmp_path / 'a', above(0, 9)),
     save(tmp_path / 'b', above(2, 9), architecture='topk')]
  )  # fmt: skip
  (row,) = compare.odds(saes, 'token_lookup', 'jumprelu')
  assert row['odds_ratio'] is None
  (row,) = compare.odds(saes, 'simulation', 'jumprelu')
  assert (row['odds_ratio'], row['latents']) == (None, 0)


def test_a_figure_shows_the_tables_means(tmp_path):
  found = compare.table_of(three(tmp_path), tolerance=0.15)
  figure = plot.draw(found, 'title')
  (ax,) = figure.axes  # the simulation has no scores
  drawn = {}
  for line in ax.lines:
    if line.get_marker() != 'None':
      key = line.get_color(), line.get_markerfacecolor() == 'none'
      drawn[key] = line.get_xydata().tolist()
  plain = [points for (_, hollow), points in drawn.items() if not hollow]
  assert plain == [
    [[10.5, pytest.approx(0.4)]],
    [[10.5, pytest.approx(0.8)], [20, pytest.approx(0.1)]],
  ]
  hollow = [points for (_, hollow), points in drawn.items() if hollow]
  assert hollow[1][0] == [10.5, pytest.approx(0.85)]
  json.dumps(found)
