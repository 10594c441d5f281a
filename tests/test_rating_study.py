"""Rating studies on disk: folders, answers, analysis."""

import csv
import itertools
import json
import sqlite3

from helpers import rated_records
import pytest

from experiments.rate import analysis
from jumprelu_jax import errors
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import rated
from jumprelu_jax.ratings import study as study_lib

ARCHITECTURES = ('gated', 'jumprelu', 'topk')


def asked(folders, **values):
  records = study_lib.same_folders(folders)
  return {'records': records, 'raters': ('ann', 'bob')} | values


@pytest.fixture
def folders(tmp_path):
  """Records of six SAEs: three architectures at two sparsities."""
  return [
    rated_records.write(
      tmp_path / f'{architecture}_{k}', [3, 7, 11, 19, 23], seed=k,
      architecture=architecture, l0=l0 * (1 + k / 50), scale=10.0 + k,
    )
    for k, (architecture, l0) in enumerate(
      itertools.product(ARCHITECTURES, (20, 75))
    )
  ]  # fmt: skip


def test_a_study_belongs_to_its_settings(folders, tmp_path):
  where = tmp_path / 'study'
  study = study_lib.prepare(where, asked(folders, seed=4))
  before = {path: path.read_bytes() for path in where.iterdir()}
  for same in (asked(folders[::-1], seed=4), {'seed': 4}, {}):
    again = study_lib.prepare(where, same)
    assert (again.items, again.orders) == (study.items, study.orders)
  for other, difference in [
    ({'seed': 5}, r'seed: 4 there, 5 now'),
    ({'per_sae': 2}, r'per_sae: 1 there, 2 now'),
    ({'raters': ('ann',)}, r"raters: \('ann', 'bob'\) there, \('ann',\) now"),
    ({'overlap': 0.5}, 'overlap: 0.2 there, 0.5 now'),
    ({'per_stratum': 2}, 'per_stratum: 5 there, 2 now'),
    ({'l0': (1.0,)}, r'l0: \(\) there, \(1.0,\) now'),
    ({'records': ('x',)}, r'records: .* there'),
  ]:
    with pytest.raises(errors.InputError, match=difference):
      study_lib.prepare(where, other)
  assert {path: path.read_bytes() for path in where.iterdir()} == before


def test_the_draw_does_not_depend_on_how_records_are_named(folders, tmp_path):
  one, two = (
    study_lib.prepare(tmp_path / name, asked(given, seed=2))
    for name, given in [('one', folders), ('two', folders[::-1])]
  )
  assert one.items == two.items
  assert one.shown == two.shown


def test_a_study_needs_no_records_once_drawn(folders, tmp_path):
  study = study_lib.prepare(tmp_path / 'study', asked(folders))
  for folder in folders:
    for path in folder.iterdir():
      path.unlink()
  again = study_lib.prepare(tmp_path / 'study', {})
  assert again.shown.keys() == {item.name for item in study.items.values()}
  assert {sae.num_alive for sae in again.saes} == {5}


def test_a_killed_draw_is_drawn_again(folders, tmp_path):
  whole = study_lib.prepare(tmp_path / 'whole', asked(folders))
  killed = tmp_path / 'killed'
  killed.mkdir()
  (killed / 'items.jsonl').write_text('')
  (killed / 'study.json.host-1.partial').write_text('{"vers')
  study = study_lib.prepare(killed, asked(folders))
  assert (study.items, study.shown) == (whole.items, whole.shown)


def test_other_folders_are_left_alone(folders, tmp_path):
  with pytest.raises(errors.InputError, match='holds no study; give an empty'):
    study_lib.prepare(folders[0], asked(folders))
  with pytest.raises(errors.InputError, match='--records is missing'):
    study_lib.prepare(tmp_path / 'new', {})
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name', ['study.json', 'items.jsonl'])
def test_a_damaged_study_is_named(folders, tmp_path, name):
  where = tmp_path / 'study'
  study_lib.prepare(where, asked(folders))
  text = (where / name).read_text()
  (where / name).write_text(text[: len(text) // 2])
  with pytest.raises(errors.InputError, match=rf'{name} (is damaged|has \d+)'):
    _ = study_lib.read(where).shown


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'strata': 5}, 'has strata 5, .* has 4'),
    ({'model': 'other'}, "has model 'other'"),
    ({'text': 'other'}, "has text 'other'"),
    ({'architecture': ''}, 'names no architecture'),
    ({'l0': 0.0}, 'none of its latents fires'),
  ],
  ids=lambda value: str(value),
)
def test_records_that_do_not_go_together(folders, tmp_path, values, message):
  odd = rated_records.write(tmp_path / 'odd', [3, 7, 11], **values)
  with pytest.raises(errors.InputError, match=message):
    study_lib.prepare(tmp_path / 'study', asked([*folders, odd]))
  assert not (tmp_path / 'study').exists()


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'raters': ('ann', 'ann')}, 'each once'),
    ({'raters': ('..',)}, 'letters, digits'),
    ({'raters': ('a/b',)}, 'letters, digits'),
    ({'per_sae': 0}, 'at least 1'),
    ({'overlap': 1.5}, 'from 0 to 1'),
    ({'l0': (0.0,)}, 'positive'),
    ({'seed': -1}, 'at least 0'),
  ],
  ids=str,
)
def test_settings_without_meaning_are_refused(folders, values, message):
  with pytest.raises(errors.InputError, match=message):
    study_lib.Settings(**asked(folders, **values))


def test_answers_are_kept_and_the_last_counts(tmp_path):
  path = tmp_path / 'answers.sqlite'
  assert answers.history(path) == []
  answers.create(path)
  answers.save(path, 'ann', 'x', 'no', 'first')
  answers.save(path, 'bob', 'x', 'maybe', '')
  answers.save(path, 'ann', 'x', 'yes', 'second; "quoted" \u2713')
  answers.save(path, 'ann', 'x', 'yes', 'second; "quoted" \u2713')  # again
  answers.create(path)
  history = [(a.rater, a.rating, a.explanation) for a in answers.history(path)]
  assert history == [
    ('ann', 'no', 'first'),
    ('bob', 'maybe', ''),
    ('ann', 'yes', 'second; "quoted" \u2713'),
  ]
  current = answers.current(path)
  assert current['ann', 'x'].score == 2
  assert current['bob', 'x'].score == 1
  with pytest.raises(Exception, match='CHECK'):
    answers.save(path, 'ann', 'y', 'perhaps', '')
  assert answers.key(path) == answers.key(path)


def test_every_commit_waits_for_the_disk(tmp_path):
  with answers._opened(tmp_path / 'answers.sqlite') as connection:
    pragmas = [
      connection.execute(f'PRAGMA {name}').fetchone()[0]
      for name in ('journal_mode', 'synchronous')
    ]
  assert pragmas == ['delete', 3]  # 3 is EXTRA


def answer_all(study, rate):
  answers.create(study.answers)
  for rater, names in study.orders.items():
    for name in names:
      rating = rate(rater, study.saes[study.items[name].sae])
      answers.save(study.answers, rater, name, rating, f'by {rater}, "so"')


def read_csv(path):
  return list(csv.DictReader(path.open()))


def test_analysis_finds_what_was_planted(folders, tmp_path, capsys):
  """Raters who can see: gated is No, topk Yes, jumprelu Maybe at 20."""
  study = study_lib.prepare(
    tmp_path / 'study', asked(folders, per_sae=2, overlap=0.5)
  )

  def rate(_, sae):
    if sae.architecture == 'jumprelu':
      return 'maybe' if sae.l0 < 40 else 'yes'
    return {'gated': 'no', 'topk': 'yes'}[sae.architecture]

  answer_all(study, rate)
  out = tmp_path / 'out'
  analysis.write(study, out)
  shares = {
    (r['architecture'], r['sparsity'], r['rating']): float(r['share'])
    for r in read_csv(out / 'rates.csv')
  }
  # Levels' names are geometric means to three digits.
  low, high = (f'{s:g}' for s in sorted({s.sparsity for s in study.saes}))
  assert shares['gated', '', 'no'] == 1
  assert shares['topk', high, 'yes'] == 1
  assert shares['jumprelu', '', 'yes'] == shares['jumprelu', '', 'maybe'] == 0.5
  assert shares['jumprelu', low, 'maybe'] == 1
  assert shares['', low, 'yes'] == pytest.approx(1 / 3, abs=1e-6)
  assert shares['', high, 'yes'] == pytest.approx(2 / 3, abs=1e-6)
  found = {
    (r['architecture'], r['less']): r for r in read_csv(out / 'differences.csv')
  }
  assert found.keys() == set(itertools.combinations(ARCHITECTURES, 2))
  # Two raters at two sparsities; jumprelu is 1 and 2 where gated is 0.
  row = found['gated', 'jumprelu']
  assert (row['pairs'], row['mean_difference']) == ('4', '-1.5')
  assert found['gated', 'topk']['mean_difference'] == '-2'
  pair, of_all = read_csv(out / 'agreement.csv')
  assert (pair['rater'], pair['other'], pair['items']) == ('ann', 'bob', '6')
  assert (pair['agreement'], pair['kappa']) == ('1', '1')
  assert (of_all['items'], of_all['alpha']) == ('6', '1')
  ratings = read_csv(out / 'ratings.csv')
  assert len(ratings) == 24
  assert {row['explanation'] for row in ratings} == {
    'by ann, "so"', 'by bob, "so"',
  }  # fmt: skip
  for row in ratings:
    item = study.items[row['item']]
    sae = study.saes[item.sae]
    assert int(row['latent']) == item.latent
    assert (row['records'], row['architecture']) == (
      sae.records,
      sae.architecture,
    )
  assert (out / 'rates.png').stat().st_size > 10_000
  assert 'mean_difference' in capsys.readouterr().out


def test_an_unfinished_study_says_so(folders, tmp_path, capsys):
  study = study_lib.prepare(tmp_path / 'study', asked(folders))
  answers.create(study.answers)
  with pytest.raises(errors.InputError, match='no answers yet'):
    analysis.write(study, tmp_path / 'out')
  answers.save(study.answers, 'ann', study.orders['ann'][0], 'yes', '')
  analysis.write(study, tmp_path / 'out')
  err = capsys.readouterr().err
  assert 'ann: 1 of 6 items answered so far' in err
  assert 'bob: 0 of 6 items' in err
  assert 'agreement: nothing to compare' in err
  assert not (tmp_path / 'out' / 'agreement.csv').exists()


def test_items_of_the_study_hold_no_key(folders, tmp_path):
  """What raters' pages are made of names no SAE: the key is in study.json."""
  study = study_lib.prepare(tmp_path / 'study', asked(folders))
  text = (tmp_path / 'study' / 'items.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [row['item'] for row in rows] == sorted(study.items)
  for row in rows:
    assert row.keys() == {'item', 'strata'}
    for stratum in row['strata']:
      assert stratum.keys() == {'stratum', 'windows'}
      for window in stratum['windows']:
        assert window.keys() == {'tokens', 'at'}
        assert {type(percent) for _, percent in window['tokens']} == {int}


def test_progress_counts_each_rater(folders, tmp_path):
  study = study_lib.prepare(tmp_path / 'study', asked(folders))
  answer_all(study, lambda rater, sae: 'maybe' if rater == 'bob' else 'no')
  rows = rated.rows(study, answers.current(study.answers).values())
  assert rated.progress(study, rows[:7]) == {'ann': (6, 6), 'bob': (1, 6)}
  assert [row['rating'] for row in rows] == ['no'] * 6 + ['maybe'] * 6


def test_all_saes_show_as_much(tmp_path):
  """Records of one SAE have fewer and shorter windows than the other's."""
  folders = [
    rated_records.write(tmp_path / 'few', [1, 2, 3], per_stratum=2, after=3),
    rated_records.write(tmp_path / 'many', [1, 2, 3], before=2),
  ]
  study = study_lib.prepare(tmp_path / 'study', asked(folders))
  for strata in study.shown.values():
    for stratum in strata:
      assert len(stratum['windows']) == 2
      for window in stratum['windows']:
        assert (len(window['tokens']), window['at']) == (2 + 1 + 3, 2)


@pytest.mark.parametrize(
  'change',
  [
    "UPDATE answers SET rating = 'yes' WHERE id = 2",
    "UPDATE answers SET explanation = 'x' WHERE id = 1",
    "UPDATE answers SET rater = 'bob' WHERE id = 3",
    'DELETE FROM answers WHERE id = 2',
    'DELETE FROM answers WHERE id = 3',
    'DELETE FROM answers',
    "UPDATE answers SET checksum = '' WHERE id = 3",
    "UPDATE answers SET explanation = x'ff' WHERE id = 1",
  ],
)
def test_answers_are_neither_changed_nor_lost_unnoticed(tmp_path, change):
  path = tmp_path / 'answers.sqlite'
  answers.create(path)
  for item in ('a', 'b', 'c'):
    answers.save(path, 'ann', item, 'no', f'fires on {item}')
  assert [one.item for one in answers.history(path)] == ['a', 'b', 'c']
  connection = sqlite3.connect(path)
  connection.execute(change)
  connection.commit()
  connection.close()
  with pytest.raises(errors.InputError, match='answers.sqlite cannot be used'):
    answers.history(path)


def test_answers_of_earlier_versions_are_read_and_added_to(tmp_path):
  path = tmp_path / 'answers.sqlite'
  connection = sqlite3.connect(path)
  connection.executescript(
    answers._TABLES.replace(',\n    checksum TEXT NOT NULL', '')
  )
  connection.execute(
    "INSERT INTO answers (rater, item, rating, explanation, at) VALUES ('ann', "
    "'a', 'no', '', 'then')"
  )
  connection.commit()
  connection.close()
  assert [one.item for one in answers.history(path)] == ['a']
  answers.create(path)
  answers.save(path, 'ann', 'b', 'yes', '')
  assert [one.item for one in answers.history(path)] == ['a', 'b']
