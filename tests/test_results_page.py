"""The tables of docs/results.md, by hand, and the page that is made of them."""

from experiments.reproduce import report

COMPARED = {
  'layer': 1, 'site': 'resid_post', 'architecture': 'topk',
  'objective': 'aux_k', 'reference': 'jumprelu/l0', 'l0': 20.0, 'num_seeds': 3,
}  # fmt: skip


def test_matched_table_by_hand():
  rows = [
    COMPARED
    | {
      'metric': 'fvu',
      'value': 0.0812,
      'difference': 0.0021,
      'low': 0.0018,
      'high': 0.0025,
    },
    COMPARED
    | {
      'metric': 'delta_lm_loss',
      'value': 0.05,
      'difference': -0.001,
      'low': None,
      'high': None,
    },
  ]
  assert report.matched_table(rows).splitlines()[2] == (
    '| resid_post 1 | `topk`, `aux_k` | 20 | 0.0812: +0.0021 (+0.0018 to '
    '+0.0025) | 0.0500: -0.0010 | 3 |'
  )
  assert len(report.matched_table(rows, ('mlp_out',)).splitlines()) == 2


def test_side_table_has_the_reference_first():
  rows = [
    COMPARED | {'metric': 'kl', 'value': 0.25, 'reference_value': 0.2},
    COMPARED
    | {'metric': 'dead_fraction', 'value': 0.031, 'reference_value': 0.0},
  ]
  assert report.side_table(rows).splitlines()[2:] == [
    '| resid_post 1 | `jumprelu`, `l0` | 0.200 | 0.0% |  |  |  |  |',
    '| resid_post 1 | `topk`, `aux_k` | 0.250 | 3.1% |  |  |  |  |',
  ]


def test_yardstick_table_names_what_is_from_outside():
  figures = {
    'l0': 17.62,
    'fvu': 0.17304,
    'delta_lm_loss': 0.14,
    'dead_fraction': 0.123,
    'l0_settled': True,
  }
  rows = [
    {'architecture': 'jumprelu', 'objective': 'l0', **figures},
    {'variant': 'lr=0.003', **figures},
  ]
  assert report.yardstick_table(rows).splitlines()[2:] == [
    '| `jumprelu`, `l0` | 17.6 | 0.1730 | 0.1400 | 12.3% | True |',
    '| lr=0.003 | 17.6 | 0.1730 | 0.1400 | 12.3% | True |',
  ]


def test_ablation_table_pairs_seeds():
  rows = [
    {
      'variant': variant,
      'seed': seed,
      'fvu': fvu,
      'delta_lm_loss': 2 * fvu,
      'l0': 16.0,
      'dead_fraction': 0.01,
      'l0_settled': True,
    }
    for variant, seed, fvu in [
      ('recipe', 0, 0.10),
      ('recipe', 1, 0.12),
      ('other', 0, 0.11),
      ('other', 1, 0.15),
      ('L0 48, recipe', 0, 0.05),
      ('L0 48, rates: half', 0, 0.04),
    ]
  ]
  assert report.ablation_table(rows).splitlines()[2:] == [
    '| recipe | 16.0 | 0.1100 itself | 0.2200 itself | 1.0% |',
    '| other | 16.0 | +0.0200 (+0.0100 to +0.0300) | +0.0400 (+0.0200 to '
    '+0.0600) | 1.0% |',
    '| L0 48, recipe | 16.0 | 0.0500 itself | 0.1000 itself | 1.0% |',
    '| L0 48, rates: half | 16.0 | -0.0100 | -0.0200 | 1.0% |',
  ]


def test_the_page_is_made_of_the_tables():
  """docs/results.md is what the committed CSVs give."""
  page = (report.DOCS / 'results.md').read_text()
  assert '<!-- table embedded_residual -->' in page
  assert report.render(page, report.DOCS / 'results') == page
