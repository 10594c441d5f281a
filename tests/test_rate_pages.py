"""The pages of a rating study: blind, durable, safe; in a real browser too."""

import dataclasses
import itertools
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from urllib import error as url_error
from urllib import parse
from urllib import request as url_request

import headless
from playwright import sync_api
import pytest
import rated_records

from experiments.rate import server
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib

# Not 5 seconds: machines that run tests may be busy.
sync_api.expect.set_options(timeout=60_000)

ROOT = pathlib.Path(__file__).parent.parent
LAYER, FIRST_LATENT = 61357, 148_001
RATERS = ('ann', 'Bo B.')
HOST = {'Host': 'localhost'}


def write_records(folder):
  """Records of six SAEs, whose every property is a string of its own."""
  kinds = itertools.product(('gated', 'jumprelu', 'topk'), (37.41, 151.73))
  return [
    rated_records.write(
      folder / f'folder_of_{architecture}_{k}',
      range(FIRST_LATENT + 100 * k, FIRST_LATENT + 100 * k + 5),
      num_latents=FIRST_LATENT + 1000,
      scale=7351.75 + 1000 * k,
      architecture=architecture,
      site='resid_mid',
      layer=LAYER,
      l0=l0 + k / 100,
      seed=k,
    )
    for k, (architecture, l0) in enumerate(kinds)
  ]


def identifying(study):
  """Returns patterns of what gives an SAE away: names, and whole numbers.

  Patterns are of lower case.
  """
  texts, numbers = {str(study.folder), 'records', 'sparsity'}, set()
  for sae in study.saes:
    folder = pathlib.Path(sae.records)
    texts |= {folder.name, str(folder), sae.architecture, sae.site}
    numbers |= {sae.layer, sae.l0, sae.sparsity, sae.num_latents}
  for item in study.items.values():
    numbers.add(item.latent)
    k = (item.latent - FIRST_LATENT) // 100
    numbers |= {7351.75 + 1000 * k, 7351 + 1000 * k}
  found = [re.escape(text.lower()) for text in texts]
  for number in numbers:
    digits = re.escape(f'{number:g}' if number < 1e5 else str(number))
    found.append(rf'(?<![0-9a-z]){digits}(?![0-9a-z])')
  return found


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return write_records(tmp_path_factory.mktemp('records'))


@pytest.fixture
def study(records, tmp_path):
  settings = {
    'records': study_lib.same_folders(records),
    'raters': RATERS,
    'overlap': 0.34,
    'per_stratum': 3,
  }
  return study_lib.prepare(tmp_path / 'study', settings)


@pytest.fixture
def client(study):
  return server.make_app(study, '127.0.0.1').test_client()


def address(rater, item):
  return f'/rater/{parse.quote(rater)}/item/{item}'


def token_of(client, rater, item):
  html = client.get(address(rater, item), headers=HOST).text
  return re.search('name="token" value="([0-9a-f]{64})"', html)[1]


def post(client, rater, item, headers=(), **form):
  return client.post(
    address(rater, item), data=form, headers=HOST | dict(headers)
  )


def test_an_answer_is_on_disk_before_the_rater_is_told(client, study):
  item, following, *_ = study.orders['ann']
  token = token_of(client, 'ann', item)
  told = post(
    client, 'ann', item, token=token, rating='maybe', explanation=' a \n b '
  )
  assert (told.status_code, told.location) == (303, address('ann', following))
  (answer,) = answers.history(study.answers)
  found = (answer.rater, answer.item, answer.rating, answer.explanation)
  assert found == ('ann', item, 'maybe', 'a b')
  page = client.get(address('ann', item), headers=HOST).text
  assert re.search(r'value="maybe" required checked', page)
  assert 'value="a b"' in page


def test_going_on_leads_through_all_items(client, study):
  names = study.orders['Bo B.']
  token = token_of(client, 'Bo B.', names[0])
  asked = client.get('/rater/Bo%20B./', headers=HOST).location
  for _ in names:
    *_, item = asked.split('/')
    told = post(
      client, 'Bo B.', item, token=token, rating='no',
      headers={'Accept': 'application/json'},
    )  # fmt: skip
    asked = told.json['next']
  assert asked == '/rater/Bo%20B./answers'
  assert told.json['answered'] == len(names) == 6
  assert 'All answered. Thank you, Bo B.' in client.get(
    asked, headers=HOST
  ).text.replace('\n', ' ')
  assert len(answers.current(study.answers)) == 6


FORM = {'rating': 'yes', 'explanation': ''}


@pytest.mark.parametrize(
  ('form', 'headers', 'status'),
  [
    (FORM, {'Origin': 'http://evil.example'}, 403),
    (FORM, {'Origin': 'null'}, 403),
    (FORM, {'Sec-Fetch-Site': 'cross-site'}, 403),
    (FORM, {'Sec-Fetch-Site': 'same-site'}, 403),
    (FORM, {'Host': 'evil.example'}, 400),
    (FORM | {'token': ''}, {}, 403),
    (FORM | {'token': 'f' * 64}, {}, 403),
    (FORM | {'token': '\u2713'}, {}, 403),
    ({'rating': 'perhaps'}, {}, 400),
    ({'explanation': 'x'}, {}, 400),
    (FORM | {'explanation': 'x' * 301}, {}, 400),
    (FORM | {'explanation': 'x' * 100_000}, {}, 413),
  ],
  ids=str,
)
def test_what_is_refused_is_not_stored(client, study, form, headers, status):
  item = study.orders['ann'][0]
  form = {'token': token_of(client, 'ann', item)} | form
  told = post(client, 'ann', item, headers, **form)
  assert told.status_code == status
  assert answers.history(study.answers) == []
  ours = {'Origin': 'http://localhost', 'Sec-Fetch-Site': 'same-origin'}
  told = post(client, 'ann', item, ours, **(form | FORM | {
    'token': token_of(client, 'ann', item)
  }))  # fmt: skip
  assert told.status_code == 303
  assert len(answers.history(study.answers)) == 1


def test_a_rater_answers_only_their_own(client, study):
  item, own = study.orders['ann'][0], study.orders['Bo B.']
  token = token_of(client, 'ann', item)
  others = next(name for name in own if name not in study.orders['ann'])
  assert post(client, 'ann', others, token=token, **FORM).status_code == 404
  assert post(client, 'eve', item, token=token, **FORM).status_code == 404
  assert post(client, 'Bo B.', own[0], token=token, **FORM).status_code == 403
  assert client.get('/rater/eve/', headers=HOST).status_code == 404
  assert answers.history(study.answers) == []


@pytest.mark.parametrize('path', ['/', '/static/rate.css', '/nothing'])
def test_headers_are_strict(client, path):
  for host, has_page in (
    ('localhost:80', True),
    ('127.0.0.1:8000', True),
    ('[::1]:8000', True),
    ('evil.example', False),
  ):
    told = client.get(path, headers={'Host': host})
    assert (told.status_code == 400) != has_page
    policy = told.headers['Content-Security-Policy']
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert 'unsafe' not in policy
    assert told.headers['X-Content-Type-Options'] == 'nosniff'
    assert told.headers['Cache-Control'] == 'no-store'
    assert 'Set-Cookie' not in told.headers


def test_only_loopback_is_served_without_a_warning():
  names = ['127.0.0.1', '127.9.9.9', '::1', 'localhost', '0.0.0.0', '::', 'me']
  assert [server.is_loopback(name) for name in names] == [True] * 4 + [
    False
  ] * 3


def test_pages_of_two_saes_differ_in_nothing(tmp_path):
  """SAEs that have nothing in common but windows and shares of the largest."""
  one = {'architecture': 'gated', 'l0': 5.0, 'layer': 1, 'site': 'attn_z'}
  other = {'architecture': 'topk', 'l0': 99.0, 'layer': 2, 'site': 'mlp_out'}
  folders = [
    rated_records.write(tmp_path / 'a', [3], num_latents=5, scale=8.0, **one),
    rated_records.write(tmp_path / 'b', [777], num_latents=999, **other),
  ]
  study = study_lib.prepare(
    tmp_path / 'study',
    {
      'records': study_lib.same_folders(folders),
      'raters': ('ann',),
      'per_stratum': 9,
    },
  )
  client = server.make_app(study, 'localhost').test_client()
  pages = []
  for name in study.orders['ann']:
    html = client.get(address('ann', name), headers=HOST).text
    html = re.sub('<header>.*</header>', '', html, flags=re.DOTALL)
    html = re.sub(r'<title>Latent \d of 2</title>', '', html)
    assert html.count(name) == 1  # where the form goes
    pages.append(html.replace(name, ''))
  assert pages[0] == pages[1]
  assert pages[0].count('<mark') > 100


def test_tokens_carry_their_share_alone(client, study):
  for rater, names in study.orders.items():
    for name in names:
      html = client.get(address(rater, name), headers=HOST).text
      body = html[html.index('<section>') :]
      tags = set(re.findall('<[^>]*>', body))
      allowed = '|'.join([
        r'<mark class="s(\d|10)( own)?" title="\d{1,3}%">',
        '</?(section|h2|ul|li|div|main|body|html)>',
        '</mark>',
      ])  # fmt: skip
      assert not [tag for tag in tags if not re.fullmatch(allowed, tag)]
      assert body.count(' own"') == body.count('<li>') == 15


class Server:
  """`experiments.rate serve` as a process of its own, which can be killed."""

  def __init__(self, *flags):
    command = [sys.executable, '-m', 'experiments.rate', 'serve', *flags]
    self._process = subprocess.Popen(
      command, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    self.said, self.url = [], None
    for line in self._process.stderr:
      self.said.append(line)
      if found := re.search(r'raters: (http://\S+)/ ', line):
        self.url = found[1]
        break
    assert self.url, ''.join(self.said)

  @property
  def port(self):
    return parse.urlsplit(self.url).port

  def kill(self):
    self._process.send_signal(signal.SIGKILL)
    self._process.wait()
    self._process.stderr.close()


@pytest.fixture
def serve():
  servers = []

  def start(*flags):
    servers.append(Server(*flags))
    return servers[-1]

  yield start
  for one in servers:
    if not one._process.stderr.closed:
      one.kill()


@dataclasses.dataclass
class Seen:
  """All that a browser was sent, and what it complained of."""

  responses: list = dataclasses.field(default_factory=list)
  requests: list = dataclasses.field(default_factory=list)
  complaints: list = dataclasses.field(default_factory=list)

  def watch(self, context):
    context.on('request', lambda r: self.requests.append(r.url))
    context.on('response', self._add)
    context.on('console', lambda m: self._complain(m.text))
    context.on('weberror', lambda e: self._complain(str(e.error)))
    context.on('dialog', lambda d: self._complain(d.message))

  def _add(self, response):
    self.responses.append(response)

  def _complain(self, text):
    if 'ERR_CONNECTION_REFUSED' not in text:  # while the server is dead
      self.complaints.append(text)

  def texts(self):
    """Yields (address, all of the answer's text)."""
    for response in self.responses:
      body = '' if 300 <= response.status < 400 else response.text()
      headers = '\n'.join(map(': '.join, response.all_headers().items()))
      yield response.url, f'{response.url}\n{headers}\n\n{body}'


def choose(page, rating):
  page.get_by_role('radio', name=rating).check()
  sync_api.expect(page.locator('#status')).to_have_text('Saved.')


def item_of(page):
  return page.url.rsplit('/', 1)[1]


def test_two_raters_and_a_killed_server(records, tmp_path, serve):
  where, seen = tmp_path / 'study', Seen()
  first = serve(
    f'--study={where}', f'--records={",".join(map(str, records))}',
    f'--raters={",".join(RATERS)}', '--overlap=0.34', '--port=0',
  )  # fmt: skip
  assert '6 SAEs, 2 raters with 6 items each, 10 latents' in first.said[0]
  with headless.chromium() as browser:
    pages = {}
    for rater in RATERS:
      context = browser.new_context()
      context.set_default_timeout(60_000)
      seen.watch(context)
      pages[rater] = context.new_page()
      pages[rater].goto(first.url)
      pages[rater].get_by_role('link', name=rater).click()
      sync_api.expect(pages[rater]).to_have_title('Latent 1 of 6')
    ann, bo = pages.values()

    # Ann uses keys alone; what she types is not taken for an answer.
    given = {('ann', item_of(ann)): ('yes', 'many moons, no yaks')}
    ann.keyboard.press('y')
    ann.keyboard.type('many moons, no yaks')
    ann.keyboard.press('Enter')
    sync_api.expect(ann).to_have_title('Latent 2 of 6')

    # Bo chooses Maybe, then No; the server is killed as soon as that is stored.
    given['Bo B.', item_of(bo)] = ('no', '')
    choose(bo, 'Maybe')
    with bo.expect_response(lambda r: r.request.method == 'POST'):
      bo.get_by_role('radio', name='No').check()
    first.kill()
    ann.keyboard.press('m')
    for page in (ann, bo):
      if page is bo:
        page.get_by_role('radio', name='Yes').check()
      sync_api.expect(page.locator('#status')).to_contain_text('Not saved')
    stored = answers.current(where / 'answers.sqlite')
    assert {k: (a.rating, a.explanation) for k, a in stored.items()} == given

    # Both go on, on the pages that are open, once it is there again.
    serve(f'--study={where}', f'--port={first.port}')
    bo.get_by_role('radio', name='No').check()
    sync_api.expect(bo.locator('#status')).to_have_text('Saved.')
    for rater, page in pages.items():
      finish(page, rater, given)
    history = answers.history(where / 'answers.sqlite')
    check_blinding(study_lib.read(where), seen, first.url)
    check_shades(browser, f'{first.url}{address("ann", history[0].item)}')
    browser.contexts[0].close()

  study = study_lib.read(where)
  stored = {(a.rater, a.item): (a.rating, a.explanation) for a in history}
  assert stored == given
  assert {key: len(names) for key, names in study.orders.items()} == {
    'ann': 6,
    'Bo B.': 6,
  }
  of_bo = [a.rating for a in history if a.rater == 'Bo B.']
  assert of_bo[:2] == ['maybe', 'no']
  assert seen.complaints == []


def finish(page, rater, given):
  """Answers a rater's other items, then changes the first one."""
  for number in range(1, 7):
    page.goto(re.sub('item/.*', '', page.url))  # to the next without an answer
    if page.url.endswith('answers'):
      break
    given[rater, item_of(page)] = ('maybe', f'line {number}')
    page.get_by_label('What it fires on').fill(f'line {number}')
    page.get_by_role('radio', name='Maybe').check()
    page.get_by_role('button', name='Save and go on').click()
    page.wait_for_url(lambda url, old=page.url: url != old)
  sync_api.expect(page.get_by_role('heading', level=1)).to_contain_text(
    f'All answered. Thank you, {rater}.'
  )
  assert page.locator('tbody tr').count() == 6
  page.get_by_role('link', name='1', exact=True).click()
  sync_api.expect(page).to_have_title('Latent 1 of 6')
  page.keyboard.press('ArrowRight')
  sync_api.expect(page).to_have_title('Latent 2 of 6')
  page.keyboard.press('ArrowLeft')
  sync_api.expect(page).to_have_title('Latent 1 of 6')
  old = given[rater, item_of(page)]
  sync_api.expect(page.get_by_label('What it fires on')).to_have_value(old[1])
  sync_api.expect(page.get_by_role('radio', checked=True)).to_have_value(old[0])
  page.keyboard.press('m')
  sync_api.expect(page.locator('#status')).to_have_text('Saved.')
  given[rater, item_of(page)] = ('maybe', old[1])
  sync_api.expect(page.locator('#answered')).to_have_text('6')
  # What corpora hold stays text.
  assert '<script>alert("x")</script>' in page.inner_text('.examples')


def check_blinding(study, seen, url):
  """Searches all that was sent for anything that names an SAE."""
  patterns = [re.compile(pattern) for pattern in identifying(study)]
  assert len(patterns) > 40
  found = list(seen.texts())
  assert sum('/item/' in where for where, _ in found) > 20
  assert any(where.endswith('.js') for where, _ in found)
  for where, text in found:
    for pattern in patterns:
      assert not pattern.search(text.lower()), (where, pattern)
  # The search does find what is there: study.json fails it in every way.
  key = (study.folder / 'study.json').read_text().lower()
  assert sum(bool(p.search(key)) for p in patterns) > 20
  outside = [one for one in seen.requests if not one.startswith(f'{url}/')]
  assert [one for one in outside if not one.startswith('data:')] == []


def check_shades(browser, url):
  """Text can be read on every shade, in light and dark (WCAG AA: 4.5)."""
  for scheme in ('light', 'dark'):
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    colors = page.evaluate(
      """() => [...document.querySelectorAll('mark')].map(mark => [
        getComputedStyle(mark).color, getComputedStyle(mark).backgroundColor,
        getComputedStyle(document.querySelector('section')).backgroundColor])"""
    )
    assert len({shade for _, shade, _ in colors}) == 10
    for color, shade, card in map(tuple, colors):
      assert contrast(color, shade, card) >= 4.5, (scheme, color, shade)
    context.close()


def contrast(color, shade, card):
  """WCAG's contrast of a colour on a shade that lies on a card."""
  *top, alpha = (*rgb(shade), 1.0)[:4]
  below = [alpha * t + (1 - alpha) * c for t, c in zip(top, rgb(card))]
  dark, light = sorted(map(luminance, (rgb(color), below)))
  return (light + 0.05) / (dark + 0.05)


def rgb(text):
  return [float(number) for number in re.findall(r'[\d.]+', text)]


def luminance(color):
  parts = [c / 255 for c in color[:3]]
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
  ]
  return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear))


def test_pages_work_without_scripts(records, tmp_path, serve):
  where = tmp_path / 'study'
  one = serve(
    f'--study={where}', f'--records={",".join(map(str, records))}', '--port=0'
  )
  with headless.chromium() as browser:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f'{one.url}/rater/rater_1/')
    item = item_of(page)
    page.get_by_role('radio', name='Yes').check()
    page.get_by_label('What it fires on').fill('<b>winter</b>')
    page.get_by_role('button', name='Save and go on').click()
    sync_api.expect(page).to_have_title('Latent 2 of 6')
    page.get_by_role('link', name='All answers').click()
    assert '<b>winter</b>' in page.inner_text('table')
  (answer,) = answers.history(where / 'answers.sqlite')
  assert (answer.item, answer.explanation) == (item, '<b>winter</b>')


def test_nothing_that_was_told_is_lost_by_kills(records, tmp_path, serve):
  """A rater answers without pause while the server is killed, twice."""
  where, told = tmp_path / 'study', []
  flags = [f'--records={",".join(map(str, records))}', '--raters=ann']
  one = serve(f'--study={where}', *flags, '--port=0')
  (item, *_) = study_lib.read(where).orders['ann']
  url = one.url + address('ann', item)
  page = url_request.urlopen(url).read().decode()
  token = re.search('name="token" value="([0-9a-f]{64})"', page)[1]
  is_over = threading.Event()

  def answer_on():
    for number in itertools.count():
      form = {'token': token, 'rating': 'yes', 'explanation': str(number)}
      body = parse.urlencode(form).encode()
      headers = {'Accept': 'application/json'}
      while not is_over.is_set():
        try:
          asked = url_request.Request(url, body, headers)
          assert url_request.urlopen(asked, timeout=10).status == 200
          told.append(str(number))
          break
        except (url_error.URLError, OSError):
          time.sleep(0.05)
      if is_over.is_set():
        return

  thread = threading.Thread(target=answer_on)
  thread.start()
  for pause in (0.3, 0.5):
    wait_for_more(told, pause)
    one.kill()
    one = serve(f'--study={where}', f'--port={one.port}')
  wait_for_more(told, 0.1)
  is_over.set()
  thread.join()
  kept = [a.explanation for a in answers.history(where / 'answers.sqlite')]
  assert len(told) > 10
  assert kept[: len(told)] == told
  assert len(kept) - len(told) <= 1  # stored, and the answer lost on its way


def wait_for_more(told, pause):
  """Returns a moment after the next answer was told."""
  count, deadline = len(told), time.monotonic() + 30
  while len(told) == count:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  time.sleep(pause)


def run(*args):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.rate', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), 'expected one of serve, analyse'),
    (('serve', '--study=STUDY', '--seed=3'), 'seed: 0 there, 3 now'),
    (('analyse', '--study=STUDY'), '--out is missing'),
    (('analyse', '--study=STUDY', '--port=1'), '--port is no flag of analyse'),
  ],
  ids=str,
)
def test_bad_commands_are_one_line(study, args, message):
  done = run(*[arg.replace('STUDY', str(study.folder)) for arg in args])
  assert done.returncode == 2
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ')
  assert message in line


def test_other_machines_get_in_with_a_warning_only(study, serve):
  one = serve(f'--study={study.folder}', '--host=0.0.0.0', '--port=0')
  assert any('warning: --host=0.0.0.0 lets other' in line for line in one.said)
  done = run('serve', f'--study={study.folder}', f'--port={one.port}')
  assert done.returncode == 2
  assert 'give another --port' in done.stderr
