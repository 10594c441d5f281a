"""Dashboards, driven in Chromium: what is shown is what the records say."""

import functools
import http.server
import json
import pathlib
import re
import threading
import time

from helpers import headless
from helpers import small_records
from helpers import written_records
import numpy as np
import pytest

from experiments.dashboard import details
from experiments.dashboard import site
from jumprelu_jax import errors
from jumprelu_jax.records import schema

pytestmark = pytest.mark.browser
NUM_LATENTS = 250
MANY = 16_384
TEXTS = small_records.texts()


@pytest.fixture(scope='module')
def browser():
  with headless.chromium() as browser:
    yield browser


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """(the latents' rows, the site's folder)."""
  folder = tmp_path_factory.mktemp('dashboard')
  rows = small_records.write(folder / 'records', NUM_LATENTS)
  site.write(schema.read(folder / 'records'), folder / 'site')
  return rows, folder / 'site'


@pytest.fixture
def page(browser):
  """A page that fails its test where a script does, or asks the network."""
  context = headless.context(browser)
  page = context.new_page()
  problems = []
  page.on('pageerror', lambda error: problems.append(str(error)))
  page.on(
    'console',
    lambda m: problems.append(m.text) if m.type == 'error' else None,
  )
  page.on('dialog', lambda dialog: problems.append(dialog.message))
  page.on('request', lambda r: _check_is_local(r.url, problems))
  yield page
  context.close()
  assert not problems


def _check_is_local(url, problems):
  if not url.startswith(('file://', 'data:', 'http://127.0.0.1:')):
    problems.append(url)


def open_index(page, folder, state=''):
  page.goto(f'{folder.as_uri()}/index.html{state}')
  page.wait_for_selector('body[data-ready]')


def open_latent(page, folder, latent):
  page.goto(f'{folder.as_uri()}/latent.html#{latent}')
  page.wait_for_selector(f'body[data-ready="{latent}"]')


def listed(page):
  """The latents in the table."""
  links = page.locator('#latents tbody tr td:first-child').all_inner_texts()
  return [int(text) for text in links]


def wait_for_found(page, count):
  text = f'{count:,} of {NUM_LATENTS} latents'
  page.wait_for_function(
    'text => document.getElementById("found").textContent === text', arg=text
  )


def by(rows, name, *, down=True):
  """Latents that fire, in an order; of equals the first comes first."""
  sign = -1 if down else 1
  firing = [row for row in rows if row['count']]
  firing.sort(key=lambda row: (sign * row[name], row['latent']))
  return [row['latent'] for row in firing]


def test_the_index_sorts(page, small):
  rows, folder = small
  open_index(page, folder)
  wait_for_found(page, NUM_LATENTS - 1)
  assert listed(page) == by(rows, 'frequency')[:100]
  page.click('#next')
  assert listed(page) == by(rows, 'frequency')[100:200]
  page.click('text=largest')
  assert listed(page) == by(rows, 'max')[:100]
  page.click('text=largest')
  assert listed(page) == by(rows, 'max', down=False)[:100]
  heads = page.locator('th[aria-sort]')
  assert heads.count() == 1
  assert heads.get_attribute('aria-sort') == 'ascending'
  page.click('th >> text=latent')
  assert listed(page) == list(range(1, 101))
  page.check('[name=silent]')
  wait_for_found(page, NUM_LATENTS)
  assert listed(page) == list(range(100))


def test_the_index_shows_what_records_say(page, small):
  rows, folder = small
  open_index(page, folder)
  latent = by(rows, 'frequency')[0]
  cells = page.locator('#latents tbody tr').first.locator('td')
  percent = 100 * rows[latent]['frequency']
  assert cells.nth(1).inner_text() == f'{percent:.3g}%'
  assert cells.nth(2).inner_text() == f'{rows[latent]["max"]:.3g}'
  fires = cells.nth(4).locator('.token').all_text_contents()
  want = [TEXTS[pair['token']] for pair in rows[latent]['tokens']]
  assert fires == [text.replace('\n', '↵') for text in want]


def test_the_index_filters_by_frequency(page, small):
  rows, folder = small
  open_index(page, folder)
  page.fill('[name=low]', '0.1')
  page.fill('[name=high]', '1')
  want = [
    latent
    for latent in by(rows, 'frequency')
    if 0.001 <= rows[latent]['frequency'] <= 0.01
  ]
  wait_for_found(page, len(want))
  assert listed(page) == want[:100]
  assert 0 < len(want) < NUM_LATENTS


@pytest.mark.parametrize(
  ('kind', 'column'), [('fires', 'tokens'), ('promotes', 'promoted')]
)
@pytest.mark.parametrize('text', ['axk', 'AX', 'b', '<scr', 'ax <img'])
def test_the_index_searches_tokens(page, small, kind, column, text):
  rows, folder = small
  open_index(page, folder)
  page.select_option('[name=where]', kind)
  page.fill('[name=token]', text)
  terms = text.lower().split()
  want = []
  for row in rows:
    words = [TEXTS[p['token']].strip().lower() for p in row[column]]
    # One letter alone finds the tokens that are this letter.
    if row['count'] and all(
      any(w == t if len(t) == 1 else w.startswith(t) for w in words)
      for t in terms
    ):
      want.append(row['latent'])
  wait_for_found(page, len(want))
  assert sorted(listed(page)) == want[:100]


def test_going_back_shows_the_same_again(page, small):
  rows, folder = small
  open_index(page, folder)
  page.fill('[name=low]', '0.01')
  page.click('text=mean')
  want = [m for m in by(rows, 'mean') if rows[m]['frequency'] >= 1e-4]
  wait_for_found(page, len(want))
  page.click('#next')
  assert listed(page) == want[100:200]
  page.locator('#latents tbody a').first.click()
  page.wait_for_selector('#examples .example')
  page.go_back()
  page.wait_for_selector('body[data-ready]')
  assert listed(page) == want[100:200]


def test_a_latent_is_highlighted_where_it_fires(page, small):
  rows, folder = small
  open_latent(page, folder, 7)
  assert page.inner_text('#name') == 'latent 7'
  assert page.locator('#examples section').count() == 1 + small_records.STRATA
  order = [
    section.get_attribute('data-stratum')
    for section in page.locator('#examples section').all()
  ]
  assert order == ['0', '5', '4', '3', '2', '1']
  for stratum in range(small_records.STRATA + 1):
    examples = page.locator(f'[data-stratum="{stratum}"] .example').all()
    assert len(examples) == 3
    for rank, example in enumerate(examples):
      words = example.locator('.words > span')
      lit = words.evaluate_all(
        'all => all.map(s => [s.dataset.value || 0, '
        's.style.getPropertyValue("--strength") || 0, '
        's.classList.contains("drawn")])'
      )
      value = 4 / (1 + stratum) / (1 + rank)
      want = np.zeros(small_records.WIDTH)
      want[[4, 6]] = value, value / 2
      got = np.array([[float(v), float(s)] for v, s, _ in lit])
      np.testing.assert_allclose(got[:, 0], want, rtol=6e-3)
      shade = np.where(want > 0, 0.18 + 0.77 * want / rows[7]['max'], 0)
      np.testing.assert_allclose(got[:, 1], shade, atol=6e-4)
      assert [drawn for *_, drawn in lit] == [i == 4 for i in range(8)]
      words_shown = words.evaluate_all('all => all.map(s => s.dataset.text)')
      assert words_shown[0] == TEXTS[9]
  # What is seen: two tokens of the first window have a colour of their own.
  colours = (
    page.locator('.words')
    .first.locator(':scope > span')
    .evaluate_all('all => all.map(s => getComputedStyle(s).backgroundColor)')
  )
  assert len(set(colours)) == 3


def test_a_character_of_several_tokens_is_one(page, tmp_path):
  row = [0, 1, 2, 3, 4, 1, 2, 3, 0]
  f_MNL = np.zeros((1, 1, 9), 'float32')
  f_MNL[0, 0, [1, 2, 6]] = 1, 4, 2
  records = written_records.write(
    tmp_path / 'records', [row], f_MNL, window=7, per_stratum=1, strata=1,
    texts=['a', b'\xe6', b'\x97', b'\xa5', ' \u202e\u05d0'],
  )  # fmt: skip
  site.write(records, tmp_path / 'site')
  open_latent(page, tmp_path / 'site', 0)
  words = page.locator('.words').first.locator(':scope > span')
  shown = words.evaluate_all(
    'all => all.map(s => [s.dataset.text, s.dataset.value || "", '
    's.classList.contains("drawn"), getComputedStyle(s).unicodeBidi])'
  )
  assert [one[:3] for one in shown] == [
    ['a', '', False], ['日', '1 · 4 · 0', True], [' \u202e\u05d0', '', False],
    ['⟨E6⟩', '', False], ['⟨97⟩', '2', False],
  ]  # fmt: skip
  assert [one[3] == 'isolate' for one in shown] == [
    False, False, True, False, False,
  ]  # fmt: skip
  words.nth(1).hover()
  assert page.inner_text('#tip').split() == ['日', '1', '·', '4', '·', '0']


def test_pointing_at_a_token_shows_its_value(page, small):
  _, folder = small
  open_latent(page, folder, 7)
  words = page.locator('.words').first.locator(':scope > span')
  words.nth(4).hover()
  assert page.inner_text('#tip').split() == [TEXTS[13].strip(), '4']
  assert page.is_visible('#tip')
  words.nth(0).hover()
  assert page.inner_text('#tip').split() == [TEXTS[9].strip(), '0']
  page.hover('h1')
  assert not page.is_visible('#tip')


def test_numbers_of_a_latent(page, small):
  rows, folder = small
  open_latent(page, folder, 7)
  row = rows[7]
  assert f'firings\n{row["count"]:,}\n' in page.inner_text('#facts')
  for name in ('tokens', 'promoted', 'suppressed', 'similar', 'together'):
    cells = page.locator(f'#{name} tr')
    assert cells.count() == len(row[name])
  assert page.locator('#suppressed td').nth(1).inner_text() == '-0.5'
  heights = page.locator('#histogram rect').evaluate_all(
    'all => all.map(r => Number(r.getAttribute("height")))'
  )
  # Bins 0 and 3 of eight hold half each, with an empty one shown after them.
  assert [height > 0 for height in heights] == [True, False, False, True, False]
  titles = page.locator('#histogram title').all_text_contents()
  assert titles[3].startswith(f'{row["count"] - row["count"] // 2:,} firings')


def test_latents_are_linked(page, small):
  rows, folder = small
  open_latent(page, folder, 7)
  page.keyboard.press('j')
  page.wait_for_selector('body[data-ready="8"]')
  page.keyboard.press('ArrowLeft')
  page.wait_for_selector('body[data-ready="7"]')
  page.click('#next')
  page.wait_for_selector('body[data-ready="8"]')
  other = rows[8]['similar'][0]['latent']
  page.click('#similar a >> nth=0')
  page.wait_for_selector(f'body[data-ready="{other}"]')
  page.fill('#go input', '15')
  page.keyboard.press('j')  # in a field a key is a letter
  assert page.inner_text('#name') == f'latent {other}'
  page.fill('#go input', '15')
  page.keyboard.press('Enter')
  page.wait_for_selector('body[data-ready="15"]')  # in the same file
  page.fill('#go input', '16')
  page.keyboard.press('Enter')
  page.wait_for_selector('body[data-ready="16"]')  # in the next


def test_latents_at_the_ends(page, small):
  _, folder = small
  open_latent(page, folder, 0)
  page.keyboard.press('k')
  assert page.inner_text('#name') == 'latent 0'
  assert 'never fires' in page.inner_text('#histogram')
  assert page.locator('.example').count() == 0
  open_latent(page, folder, NUM_LATENTS - 1)
  assert page.get_attribute('#next', 'href') is None
  open_latent(page, folder, 9999)
  assert 'there is no latent 9999' in page.inner_text('#problem')


@pytest.mark.parametrize('latent', range(1, 1 + len(small_records.HOSTILE)))
def test_text_stays_text(page, small, latent):
  rows, folder = small
  open_latent(page, folder, latent)
  shown = page.locator('.words').first.locator(':scope > span').nth(5)
  want = TEXTS[74 + latent % len(small_records.HOSTILE)]
  assert shown.get_attribute('data-text') == want
  assert shown.text_content() == want
  assert page.locator('#tokens .token').nth(1).text_content() == want
  shown.hover()
  assert page.inner_text('#tip').startswith(want[:5])
  check_untouched(page)


def check_untouched(page):
  assert page.evaluate('window.hacked') is None
  assert page.locator('img').count() == 0
  assert page.locator('b').count() == 0
  scripts = page.locator('script').evaluate_all('all => all.map(s => s.src)')
  assert all(scripts)  # none that stands in the page
  assert page.locator('header a').text_content() == '<b>sae'


def test_text_stays_text_in_the_index(page, small):
  _, folder = small
  open_index(page, folder)
  page.fill('[name=token]', '</script>')
  page.wait_for_function(
    '!document.getElementById("found").textContent.startsWith("249 ")'
  )
  shown = page.locator('#latents .token').all_text_contents()
  assert small_records.HOSTILE[1] in shown
  assert page.locator('.facts').inner_text().count('text & more.jsonl') == 1
  check_untouched(page)


def test_scripts_hold_no_markup():
  value = {text: [text] for text in small_records.HOSTILE}
  made = site.script('a/b', value)
  assert '<' not in made
  assert made.isascii()
  name, _, content = made.removeprefix('jr.give(').partition(',')
  assert json.loads(name) == 'a/b'
  assert json.loads(content.removesuffix(');\n')) == value


def luminance(colour):
  """Relative luminance of an opaque colour (WCAG 2)."""
  r, g, b = (int(v) / 255 for v in re.findall(r'[0-9.]+', colour)[:3])
  linear = [
    v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4
    for v in (r, g, b)
  ]
  return np.dot(linear, [0.2126, 0.7152, 0.0722])


def blend(over, under):
  """Returns a colour with alpha over an opaque one."""
  *front, alpha = [float(v) for v in re.findall(r'[0-9.]+', over)]
  back = [float(v) for v in re.findall(r'[0-9.]+', under)[:3]]
  mixed = [
    alpha * f + (1 - alpha) * b for f, b in zip(front, back, strict=True)
  ]
  return f'rgb({", ".join(str(round(v)) for v in mixed)})'


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_both_schemes_are_legible(page, small, scheme):
  _, folder = small
  page.emulate_media(color_scheme=scheme)
  open_latent(page, folder, 7)
  styles = (
    's => [getComputedStyle(s).color, getComputedStyle(s).backgroundColor]'
  )
  text, back = page.locator('body').evaluate(styles)
  assert (luminance(back) < 0.1) == (scheme == 'dark')
  pairs = [
    (text, back),
    (page.locator('.quiet').first.evaluate(styles)[0], back),
  ]
  pairs.append((page.locator('a').first.evaluate(styles)[0], back))
  word = page.locator('.words .on:not(.weak)').first
  for strength in np.linspace(0.25, 0.95, 10):
    word.evaluate(f's => s.style.setProperty("--strength", {strength})')
    colour, shade = word.evaluate(styles)
    pairs.append((colour, blend(shade, back)))
  weak = page.locator('.words .weak').first
  for strength in (0.18, 0.26):
    weak.evaluate(f's => s.style.setProperty("--strength", {strength})')
    colour, shade = weak.evaluate(styles)
    pairs.append((colour, blend(shade, back)))
  for front, behind in pairs:
    high, low = sorted(map(luminance, (front, behind)), reverse=True)
    assert (high + 0.05) / (low + 0.05) >= 4.5, (front, behind)


def test_the_scheme_can_be_chosen(page, small):
  _, folder = small
  page.emulate_media(color_scheme='light')
  open_latent(page, folder, 7)
  shade = 'getComputedStyle(document.body).backgroundColor'
  light = page.evaluate(shade)
  page.click('#theme')
  dark = page.evaluate(shade)
  assert luminance(dark) < 0.1 < luminance(light)
  open_index(page, folder)
  assert page.evaluate(shade) == dark  # it is remembered
  page.click('#theme')
  assert page.evaluate(shade) == light


@pytest.mark.parametrize('width', [360, 1200])
def test_pages_fit_their_width(page, small, width):
  _, folder = small
  page.set_viewport_size({'width': width, 'height': 800})
  for show in (
    functools.partial(open_index, page, folder),
    functools.partial(open_latent, page, folder, 7),
  ):
    show()
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_it_works_from_a_web_server(page, small):
  rows, folder = small
  handler = functools.partial(Quiet, directory=folder)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    page.goto(f'http://127.0.0.1:{server.server_port}/')
    page.wait_for_selector('body[data-ready]')
    first = by(rows, 'frequency')[0]
    page.click('#latents tbody a >> nth=0')
    page.wait_for_selector(f'body[data-ready="{first}"]')
  finally:
    server.shutdown()
    server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    del args


def test_many_latents_are_usable_within_two_seconds(page, tmp_path):
  small_records.write(tmp_path / 'records', MANY, examples=False)
  site.write(schema.read(tmp_path / 'records'), tmp_path / 'site')
  start = time.monotonic()
  open_index(page, tmp_path / 'site')
  page.click('text=largest')
  page.fill('[name=token]', 'axk')
  # Latents 72, 144, … of the 16,384; latent 0 never fires.
  page.wait_for_function(
    'document.getElementById("found").textContent.startsWith("227 ")'
  )
  took = time.monotonic() - start
  print(f'{MANY} latents: opened, sorted and searched in {took:.2f} s')
  assert took < 2


def test_of_each_stratum_a_few_are_shown():
  examples = [
    {'stratum': stratum, 'rank': rank}
    for stratum in (0, 1)
    for rank in range(9)
  ]
  chosen = details._chosen(examples, 3)
  assert [(e['stratum'], e['rank']) for e in chosen] == [
    (0, 0), (0, 1), (0, 2), (1, 0), (1, 4), (1, 8),
  ]  # fmt: skip


def test_a_folder_of_something_else_is_refused(small, tmp_path):
  _, folder = small
  records = schema.read(folder.parent / 'records')
  (tmp_path / 'thesis.txt').write_text('years of work')
  with pytest.raises(errors.InputError, match='thesis.txt'):
    site.write(records, tmp_path)
  with pytest.raises(errors.InputError, match='expected 1 or more'):
    site.write(records, tmp_path / 'new', examples=0)
  assert not (tmp_path / 'new').exists()


def test_writing_again_replaces_the_site(tmp_path):
  for num_latents in (40, 20):
    folder = tmp_path / f'records_{num_latents}'
    small_records.write(folder, num_latents)
    site.write(schema.read(folder), tmp_path / 'site')
  chunks = sorted(p.name for p in (tmp_path / 'site/data/latents').iterdir())
  assert chunks == ['0.js', '1.js']
  assert '20 latents' in pathlib.Path(tmp_path / 'site/index.html').read_text()
