"""Figures: what they draw is in their tables, and can be read."""

import csv
import dataclasses
import itertools
import math

from helpers import drawn_text
from helpers import small_results
import numpy as np
import pytest

from jumprelu_jax import finished
from jumprelu_jax import plot
from jumprelu_jax.plot import catalogue
from jumprelu_jax.plot import curves
from jumprelu_jax.plot import estimators
from jumprelu_jax.plot import frequencies
from jumprelu_jax.plot import fronts
from jumprelu_jax.plot import style
from jumprelu_jax.plot import toy

KIND = ('jumprelu', 'l0')
LINES = style.lines([KIND])


def front(points, **values):
  return small_results.front('fvu', points, **values)


def values_of(table, drawn):
  return [(r['l0'], r['value']) for r in table if r['drawn'] == drawn]


def test_a_line_is_the_mean_of_seeds_in_their_common_range():
  rows = front([(1, 0.8), (100, 0.4)]) + front([(10, 0.4), (1000, 0.2)], seed=1)
  table = fronts.table_of(rows, 'fvu')
  line = [row for row in table if row['drawn'] == 'line']
  # Seed 0 is 0.6 at 10, seed 1 is 0.3 at 100.
  assert values_of(table, 'line') == [
    (10, pytest.approx(0.5)),
    (100, pytest.approx(0.35)),
  ]
  assert [row['low'] for row in line] == pytest.approx([0.4, 0.3])
  assert [row['high'] for row in line] == pytest.approx([0.6, 0.4])
  assert {row['num_seeds'] for row in line} == {2}
  assert len(values_of(table, 'run')) == 4


def test_an_unsettled_run_is_hollow_and_off_the_line():
  rows = front([(10, 0.4), (100, 0.2)])
  rows += front([(30, 0.9)], l0_settled=False)
  table = fronts.table_of(rows, 'fvu')
  assert values_of(table, 'line') == [(10, 0.4), (100, 0.2)]
  (ax,) = fronts.draw(table, LINES, 'title').axes
  line, settled, unsettled = ax.lines
  assert list(line.get_xdata()) == [10, 100]
  assert list(settled.get_xdata()) == [10, 100]
  assert list(unsettled.get_xdata()) == [30]
  assert unsettled.get_markerfacecolor() == 'none'
  assert settled.get_markerfacecolor() == LINES[KIND].color
  assert (settled.get_linestyle(), unsettled.get_linestyle()) == ('None',) * 2


def test_a_single_run_of_a_seed_does_not_break_the_line():
  rows = front([(10, 0.4), (100, 0.2)]) + front([(30, 0.9)], seed=1)
  table = fronts.table_of(rows, 'fvu')
  assert values_of(table, 'line') == [(10, 0.4), (100, 0.2)]
  assert (30, 0.9) in values_of(table, 'run')


def test_what_has_no_place_is_not_drawn():
  rows = front([(0, 0.4), (10, math.nan), (20, None), (30, 0.2)])
  assert values_of(fronts.table_of(rows, 'fvu'), 'run') == [(30, 0.2)]
  assert fronts.table_of(rows, 'importance_uniformity') == []


def test_a_csv_has_the_very_numbers_drawn(tmp_path):
  rows = front([(7, 1 / 3), (90, 1 / 7)]) + front([(8, 0.3), (80, 0.1)], seed=1)
  table = fronts.table_of(rows, 'fvu')
  figure = fronts.draw(table, LINES, 'title')
  style.save_with_table(figure, table, tmp_path, 'fvu')
  with (tmp_path / 'fvu.csv').open() as file:
    read = list(csv.DictReader(file))
  for drawn, artist in zip(('line', 'run'), figure.axes[0].lines, strict=False):
    chosen = [row for row in read if row['drawn'] == drawn]
    for column, data in (('l0', artist.get_xdata()),
                         ('value', artist.get_ydata())):  # fmt: skip
      found = [float(row[column]) for row in chosen]
      np.testing.assert_allclose(found, data, rtol=1e-5)
  (band,) = figure.axes[0].collections
  lows = [float(row['low']) for row in read if row['drawn'] == 'line']
  corners = band.get_paths()[0].vertices[:, 1]
  assert min(corners) == pytest.approx(min(lows), rel=1e-5)
  assert (tmp_path / 'fvu.png').read_bytes().startswith(b'\x89PNG')
  assert (tmp_path / 'fvu.pdf').read_bytes().startswith(b'%PDF')


def test_the_same_numbers_give_the_same_files(tmp_path):
  table = fronts.table_of(front([(7, 0.3), (90, 0.1)]), 'fvu')
  for name in ('one', 'two'):
    style.save(fronts.draw(table, LINES, 'title'), tmp_path / name, 'fvu')
  for suffix in ('png', 'pdf'):
    one, two = (tmp_path / n / f'fvu.{suffix}' for n in ('one', 'two'))
    assert one.read_bytes() == two.read_bytes()


def test_lines_differ_in_more_than_colour():
  looks = list(style.lines(range(70)).values())
  assert len({dataclasses.astuple(look) for look in looks}) == 70
  in_grey = [(look.marker, look.linestyle) for look in looks[:10]]
  assert len(set(in_grey)) == len({marker for marker, _ in in_grey}) == 10


def test_an_architecture_looks_the_same_in_every_figure():
  few = style.architectures([('gated',), ('mine',), ('topk',)])
  many = style.architectures(
    [('topk', 'aux_k'), ('relu', 'ri_l1'), ('gated', 'gated'),
     ('gated', 'aux_k'), ('jumprelu', 'l0'), ('batch_topk', 'aux_k')]
  )  # fmt: skip
  assert few['gated',] == many['gated', 'gated']
  assert few['topk',] == many['topk', 'aux_k']
  for looks in (few, many):
    assert len(set(map(dataclasses.astuple, looks.values()))) == len(looks)
  main = [look for kind, look in many.items() if kind != ('gated', 'aux_k')]
  assert len({look.color for look in main}) == len(main) == 5


@pytest.mark.parametrize('l0', [7, 0], ids=['fires', 'dead'])
def test_pareto_is_drawn(tmp_path, l0):
  plot.pareto(front([(l0, 0.3), (10 * l0, 0.1)]), tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {
    'pareto.png',
    'pareto.pdf',
  }


@pytest.fixture
def run(tmp_path):
  """Rows of two seeds and two architectures, with their folders."""
  saes = [
    small_results.row(architecture=name, seed=seed, l0=l0, l0_settled=l0 < 20)
    for name in ('jumprelu', 'gated')
    for seed, l0 in ((0, 10.0), (1, 30.0))
  ]
  return finished.read([small_results.write_run(tmp_path / 'run', saes)])


def write_frequencies(row, values):
  frequency_M = np.array(values, 'float32')
  np.savez(row['folder'] / 'latents.npz', frequency_M=frequency_M)


def test_histograms_are_means_over_seeds(run):
  one, other = (row for row in run if row['architecture'] == 'jumprelu')
  write_frequencies(one, [0, 1e-4, 0.2, 1.0])
  write_frequencies(other, [0, 0, 0.2, 0.02])
  table = frequencies.table_of([one, other])
  found = {
    (round(row['low'], 6), round(row['high'], 6)): row['share']
    for row in table
    if row['share']
  }
  edges = {low for low, _ in found} | {high for _, high in found}
  assert min(edges - {0}) <= 1e-4
  assert list(found.values()) == [3 / 8, 1 / 8, 1 / 8, 2 / 8, 1 / 8]
  assert found[0, 0] == 3 / 8  # never
  assert next(low for low, high in found if low <= 0.2 < high) < 0.2
  assert sum(row['share'] for row in table) == pytest.approx(1)
  assert {(row['l0'], row['num_seeds']) for row in table} == {(20, 2)}
  assert {row['l0_settled'] for row in table} == {False}
  assert frequencies.count(table) == 2


def test_histograms_draw_their_table(run):
  table = frequencies.table_of(run)
  figure = frequencies.draw(table, 'title')
  ax = figure.axes[0]
  assert ax.get_title() == 'gated'
  (steps,) = ax.patches
  rows = [r for r in table if r['architecture'] == 'gated' and r['high'] > 0]
  values, edges, _ = steps.get_data()
  assert list(values) == [row['share'] for row in rows]
  assert list(edges[:-1]) == [row['low'] for row in rows]
  assert steps.get_linestyle() == '--'  # one of the two has not settled


def test_every_panel_holds_the_most_of_any(run):
  """Of the last one drawn, too, whose latents are nearly all dead."""
  for row in run:
    is_dead = row['architecture'] == 'jumprelu'
    write_frequencies(row, [0] * (9 if is_dead else 1) + [0.1, 0.01])
  axes = frequencies.draw(frequencies.table_of(run), 'title').axes[:2]
  assert [ax.get_title() for ax in axes] == ['gated', 'jumprelu']
  assert min(ax.get_ylim()[1] for ax in axes) > 9 / 11


def test_objectives_are_named_where_an_architecture_has_several():
  kinds = [('jumprelu', 'l0'), ('jumprelu', 'l1'), ('topk', 'aux_k')]
  assert style.names(kinds) == {
    ('jumprelu', 'l0'): ('jumprelu', 'l0'),
    ('jumprelu', 'l1'): ('jumprelu', 'l1'),
    ('topk', 'aux_k'): ('topk',),
  }


def test_an_sae_that_never_fires_has_no_histogram_alone(run):
  for row in run:
    write_frequencies(row, [0, 0])
  assert frequencies.table_of(run) == []


def test_curves_are_those_of_the_folders(run):
  table = curves.table_of(run, 'squared_error')
  assert curves.count(table) == 4
  (first,) = {r['seed'] for r in table if r['l0'] == 10.0}
  assert first == 0
  ax = curves.draw(table, 'title').axes[0]
  settled, unsettled = ax.lines
  assert list(settled.get_xdata()) == list(range(10, 101, 10))
  expected = 0.2 * (1 + 0.95 ** np.arange(10, 101, 10))
  np.testing.assert_allclose(settled.get_ydata(), expected, rtol=1e-6)
  assert (settled.get_linestyle(), unsettled.get_linestyle()) == ('-', '--')
  assert settled.get_color() != unsettled.get_color()  # by L0


def test_what_is_not_in_the_runs_has_no_table(run):
  (run[0]['folder'] / 'latents.npz').unlink()
  for row in run[1:]:
    row['folder'] = None
  entries = {entry.name: entry for entry in catalogue.of_runs(run)}
  assert (
    entries['importance_uniformity'].table,
    entries['importance_uniformity'].num_drawn,
  ) == ([], 0)
  assert entries['frequencies_resid_post_2'].table == []
  assert entries['curves_l0_resid_post_2'].num_drawn == 1
  assert entries['fvu'].num_drawn == 4
  assert {entry.num_saes for entry in entries.values()} == {4}


KINDS = [
  ('jumprelu_free_norm', 'tanh+pre_activation'),
  ('matryoshka_batch_topk', 'reconstruction+aux_k'),
  ('gated', 'gated'),
  ('relu', 'ri_l1'),
  ('topk', 'aux_k'),
  ('jumprelu', 'quadratic_frequency'),
  ('jumprelu', 'l0'),
]
WIDE = [(0.7, 0.9), (8, 0.5), (250, 0.05), (1900, 0.001)]
NARROW = [(76, 0.1), (77.2, 0.1002), (83, 0.1003)]


def crowd(kinds, layers, sites, points):
  """Rows of runs that ask much of a figure's room."""
  return [
    row | {'model': 'a-language-model-of-9b', 'tokens': 4_000_000_000}
    for (architecture, objective), layer, site in itertools.product(
      kinds, layers, sites
    )
    for row in front(
      points,
      architecture=architecture,
      objective=objective,
      layer=layer,
      site=site,
      l0_settled=architecture != 'gated',
      steps=200_000,
    )
  ]


@pytest.mark.parametrize('points', [WIDE, NARROW, WIDE[:1]],
                         ids=['wide', 'narrow', 'one'])  # fmt: skip
@pytest.mark.parametrize(
  ('kinds', 'layers', 'sites'),
  [
    (KINDS, (9, 20, 31), ('attn_z', 'mlp_out', 'resid_post')),
    (KINDS[:2], (9,), ('mlp_in->mlp_out/5', 'resid_post')),
    (KINDS, (9,), ('resid_post',)),
    (KINDS[:1], (9,), ('resid_post',)),
  ],
  ids=['many', 'two', 'legend', 'one'],
)
def test_fronts_can_be_read(kinds, layers, sites, points):
  metric = 'relative_reconstruction_bias' if points is NARROW else 'fvu'
  rows = crowd(kinds, layers, sites, points)
  table = fronts.table_of(rows, metric)
  figure = fronts.draw(table, style.lines(kinds), fronts.title_of(rows[0]))
  assert drawn_text.overlaps(figure) == []
  assert not drawn_text.legend_covers_data(figure)


@pytest.mark.parametrize('points', [WIDE, NARROW], ids=['wide', 'narrow'])
@pytest.mark.parametrize('number', [7, 2, 1])
def test_ladders_can_be_read(tmp_path, number, points):
  rows = crowd(KINDS[:number], (20,), ('resid_post',), points)
  for i, row in enumerate(rows):
    row['folder'] = tmp_path / str(i)
    row['folder'].mkdir()
    small_results.write_curve(row['folder'], row | {'steps': 100})
    lines = (row['folder'] / 'metrics.jsonl').read_text()
    lines = lines.replace('"step": ', '"step": 20')  # up to 200,100
    (row['folder'] / 'metrics.jsonl').write_text(lines)
    write_frequencies(row, np.geomspace(3e-8 if number > 1 else 2e-3, 1, 50))
  title = fronts.title_of(rows[0]) + '; resid_post of layer 20'
  figure = frequencies.draw(frequencies.table_of(rows), title)
  assert drawn_text.overlaps(figure) == []
  for metric in curves.METRICS:
    figure = curves.draw(curves.table_of(rows, metric), title)
    assert drawn_text.overlaps(figure) == []


def test_toys_can_be_read(monkeypatch):
  monkeypatch.setattr(estimators, '_BATCHES', 2)
  for entry in catalogue.of_toys():
    figure = entry.draw(entry.table)
    assert drawn_text.overlaps(figure) == []
    assert not drawn_text.legend_covers_data(figure)


def normal_cdf(x):
  return (1 + math.erf(x / math.sqrt(2))) / 2


def test_toy_shows_what_each_activation_gets_wrong():
  found = {
    (row['activation'], row['curve']): row['y']
    for row in toy.table_of()
    if row['curve'] in ('false_positives', 'mean_error')
  }
  kept_out = 1 - normal_cdf(toy.THRESHOLD / toy.NOISE)
  for name, rate in (
    ('ReLU', 0.5),
    ('ReLU, bias shifted', kept_out),
    ('JumpReLU', kept_out),
  ):
    rate_found = found[name, 'false_positives']
    assert rate_found == pytest.approx(rate, abs=4 / math.sqrt(100_000))
  assert found['ReLU', 'mean_error'] == pytest.approx(0, abs=0.01)
  shifted = found['ReLU, bias shifted', 'mean_error']
  assert shifted == pytest.approx(-toy.THRESHOLD, abs=0.05)
  # What JumpReLU loses are tokens below the threshold alone.
  assert -0.06 < found['JumpReLU', 'mean_error'] < 0


def test_toy_is_drawn_from_its_table():
  table = toy.table_of()
  rows = [row for row in table if row['activation'] == 'JumpReLU']
  z = np.array([r['x'] for r in rows if r['curve'] == 'function'])
  f = np.array([r['y'] for r in rows if r['curve'] == 'function'])
  np.testing.assert_allclose(f, np.where(z > toy.THRESHOLD, z, 0), atol=1e-6)
  for sort in ('absent', 'present'):
    assert not any(
      row['y']
      for row in rows
      if row['curve'] == sort and row['x'] < toy.THRESHOLD - 0.1
    )
  figure = toy.draw(table)
  assert figure.axes[0].get_title().split('\n')[1] == '50% false positives'
  assert figure.axes[1].get_title().endswith('mean error -1.5')


def test_expected_gradient_is_the_derivative_of_the_expected_loss():
  thresholds = np.linspace(0.1, 1.6, 16)
  step = 0.01
  above = estimators.expected_loss(thresholds + step)
  below = estimators.expected_loss(thresholds - step)
  found = (above - below) / (2 * step)
  exact = estimators.expected_gradient(thresholds)
  np.testing.assert_allclose(exact, found, atol=5e-4)


def test_expected_loss_is_that_of_samples():
  thresholds = np.array([0.2, 0.7, 1.3])
  strength_B, z_B = estimators.sample(400_000, seed=7)
  found = [
    float(estimators.loss(np.float32(t)[None][0], strength_B, z_B, 1.0))
    for t in thresholds
  ]
  exact = estimators.expected_loss(thresholds)
  np.testing.assert_allclose(found, exact, atol=4e-3)


def test_a_narrow_kernel_is_unbiased_and_noisy_and_a_wide_one_is_not():
  table = estimators.table_of()

  def values(panel, curve):
    return np.array([
      row['value']
      for row in table
      if (row['panel'], row['curve']) == (panel, curve)
    ])  # fmt: skip

  exact = values('gradient', 'expected')
  narrow, _, wide = (f'bandwidth {b:g}' for b in estimators.BANDWIDTHS)
  deviation = values('noise', narrow) / math.sqrt(256)
  error = values('gradient', narrow) - exact
  assert np.max(np.abs(error) / deviation) < 5
  assert np.max(np.abs(values('gradient', wide) - exact)) > 0.2
  noises = [values('noise', f'bandwidth {b:g}') for b in estimators.BANDWIDTHS]
  assert np.all(noises[0] > noises[1])
  assert np.all(noises[1] > noises[2])
  # The loss of few tokens is flat but for its jumps.
  few = values('loss', 'mean of 16 tokens')
  assert 2 < len(np.unique(few)) < 18
