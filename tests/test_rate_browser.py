"""A rating study in a real browser, served by a process that is killed."""

import contextlib
import dataclasses
import itertools
import pathlib
import re
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from urllib import error as url_error
from urllib import parse
from urllib import request as url_request

from helpers import headless
from helpers import rated_records
from playwright import sync_api
import pytest

from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib

pytestmark = pytest.mark.browser
ROOT = pathlib.Path(__file__).parent.parent
RATERS = rated_records.RATERS


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return rated_records.write_six(tmp_path_factory.mktemp('records'))


@pytest.fixture
def study(records, tmp_path):
  return rated_records.prepare_small(tmp_path / 'study', records)


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
    k = (item.latent - rated_records.FIRST_LATENT) // 100
    numbers |= {7351.75 + 1000 * k, 7351 + 1000 * k}
  found = [re.escape(text.lower()) for text in texts]
  for number in numbers:
    digits = re.escape(f'{number:g}' if number < 1e5 else str(number))
    found.append(rf'(?<![0-9a-z]){digits}(?![0-9a-z])')
  return found


def address(rater, item):
  return f'/rater/{parse.quote(rater)}/item/{item}'


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


class Wire(socketserver.ThreadingTCPServer):
  """Stands between browser and server; keeps every byte of every answer."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Connection)
    self.answered, self.port_of_server = [], None
    self.url = f'http://127.0.0.1:{self.server_address[1]}'
    threading.Thread(target=self.serve_forever, daemon=True).start()


class Connection(socketserver.BaseRequestHandler):
  def handle(self):
    kept = bytearray()
    self.server.answered.append(kept)
    try:
      there = socket.create_connection(
        ('127.0.0.1', self.server.port_of_server)
      )
    except OSError:
      return  # the server is dead
    args = (self.request, there, bytearray())
    threading.Thread(target=pass_on, args=args, daemon=True).start()
    pass_on(there, self.request, kept)


def pass_on(source, sink, kept):
  """Copies what comes until one end is closed, then closes both."""
  with contextlib.suppress(OSError):
    while part := source.recv(1 << 16):
      kept += part
      sink.sendall(part)
  for end in (source, sink):
    with contextlib.suppress(OSError):
      end.shutdown(socket.SHUT_RDWR)


@dataclasses.dataclass
class Seen:
  """What browsers asked for, and what they complained of."""

  requests: list = dataclasses.field(default_factory=list)
  complaints: list = dataclasses.field(default_factory=list)

  def watch(self, context):
    context.on('request', lambda r: self.requests.append(r.url))
    context.on('console', lambda m: self._complain(m.text))
    context.on('weberror', lambda e: self._complain(str(e.error)))
    context.on('dialog', lambda d: self._complain(d.message))

  def _complain(self, text):
    if 'net::ERR_' not in text:  # while the server is dead
      self.complaints.append(text)


def choose(page, rating):
  page.get_by_role('radio', name=rating).check()
  sync_api.expect(page.locator('#status')).to_have_text('Saved.')


def item_of(page):
  return page.url.rsplit('/', 1)[1]


def test_two_raters_and_a_killed_server(records, tmp_path, serve):
  where, seen, wire = tmp_path / 'study', Seen(), Wire()
  first = serve(
    f'--study={where}', f'--records={",".join(map(str, records))}',
    f'--raters={",".join(RATERS)}', '--overlap=0.34', '--port=0',
  )  # fmt: skip
  wire.port_of_server = first.port
  assert '6 SAEs, 2 raters with 6 items each, 10 latents' in first.said[0]
  with headless.chromium() as browser:
    pages = {}
    for rater in RATERS:
      context = headless.context(browser)
      seen.watch(context)
      pages[rater] = context.new_page()
      pages[rater].goto(wire.url)
      pages[rater].get_by_role('link', name=rater).click()
      sync_api.expect(pages[rater]).to_have_title('Latent 1 of 6')
    ann, bo = pages.values()

    # Ann uses keys alone; what she types is not taken for an answer.
    given = {('ann', item_of(ann)): ('yes', 'many moons, no yaks')}
    ann.wait_for_load_state()
    ann.keyboard.press('y')
    ann.keyboard.type('many moons, no yaks')
    ann.keyboard.press('Enter')
    sync_api.expect(ann).to_have_title('Latent 2 of 6')

    # Bo chooses Maybe, then No; the server is killed as soon as that is stored.
    given['Bo B.', item_of(bo)] = ('no', '')
    choose(bo, 'Maybe')
    with bo.expect_response(lambda r: r.request.method == 'POST'):
      bo.get_by_role('radio', name='No').check()
    ann.wait_for_load_state()
    first.kill()
    ann.keyboard.press('m')
    for page in (ann, bo):
      if page is bo:
        page.get_by_role('radio', name='Yes').check()
      sync_api.expect(page.locator('#status')).to_contain_text('Not saved')
    stored = answers.current(where / 'answers.sqlite')
    assert {k: (a.rating, a.explanation) for k, a in stored.items()} == given

    # Both go on, on the pages that are open, once it is there again.
    wire.port_of_server = serve(f'--study={where}', '--port=0').port
    bo.get_by_role('radio', name='No').check()
    sync_api.expect(bo.locator('#status')).to_have_text('Saved.')
    for rater, page in pages.items():
      finish(page, rater, given)
    history = answers.history(where / 'answers.sqlite')
    check_shades(browser, f'{wire.url}{address("ann", history[0].item)}')

  study = study_lib.read(where)
  check_blinding(study, wire, seen)
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
    old = page.url
    page.get_by_role('button', name='Save and go on').click()
    sync_api.expect(page).not_to_have_url(old)
  sync_api.expect(page.get_by_role('heading', level=1)).to_contain_text(
    f'All answered. Thank you, {rater}.'
  )
  assert page.locator('tbody tr').count() == 6
  page.get_by_role('link', name='1', exact=True).click()
  for number, key in ((1, 'ArrowRight'), (2, 'ArrowLeft')):
    sync_api.expect(page).to_have_title(f'Latent {number} of 6')
    page.wait_for_load_state()  # a title is there before the keys are
    page.keyboard.press(key)
  sync_api.expect(page).to_have_title('Latent 1 of 6')
  page.wait_for_load_state()
  old = given[rater, item_of(page)]
  sync_api.expect(page.get_by_label('What it fires on')).to_have_value(old[1])
  sync_api.expect(page.get_by_role('radio', checked=True)).to_have_value(old[0])
  page.keyboard.press('m')
  sync_api.expect(page.locator('#status')).to_have_text('Saved.')
  sync_api.expect(page.locator('#answered')).to_have_text('6')
  # What corpora hold stays text.
  assert '<script>alert("x")</script>' in page.inner_text('.examples')
  # A line that is typed is kept, too, when the page is left at once.
  line = f'{old[1]} again'.strip()
  given[rater, item_of(page)] = ('maybe', line)
  page.keyboard.press('End')
  page.keyboard.type(' again')
  page.goto(re.sub('item/.*', 'answers', page.url))
  row = page.get_by_role('row').filter(has_text=line)
  for _ in range(100):
    if row.count():
      break
    page.reload()
  assert row.count() == 1


def check_blinding(study, wire, seen):
  """Searches all that was sent for anything that names an SAE."""
  sent = b'\n'.join(wire.answered).decode().lower()
  assert sent.count('http/1.1 200') > 40
  assert sent.count('<legend><h1>is this latent mostly monosemantic?') > 12
  asked = '\n'.join(seen.requests).lower()
  patterns = [re.compile(pattern) for pattern in identifying(study)]
  assert len(patterns) > 40
  for pattern in patterns:
    assert not pattern.search(sent), pattern
    assert not pattern.search(asked), pattern
  # The search does find what is there: study.json is the key.
  key = (study.folder / 'study.json').read_text().lower()
  assert sum(bool(pattern.search(key)) for pattern in patterns) > 30
  own = (f'{wire.url}/', 'data:')
  assert [one for one in seen.requests if not one.startswith(own)] == []


def check_shades(browser, url):
  """Text can be read on every shade, in light and dark (WCAG AA: 4.5)."""
  for scheme in ('light', 'dark'):
    context = headless.context(browser, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    colors = page.evaluate(
      """() => [...Array(10).keys()].map(shade => {
        const mark = document.createElement('mark');
        mark.className = `s${shade + 1}`;
        const card = document.querySelector('section');
        card.append(mark);
        return [mark, mark, card].map((part, i) =>
          getComputedStyle(part)[i ? 'backgroundColor' : 'color']);
      })"""
    )
    assert len({shade for _, shade, _ in colors}) == 10
    for color, shade, card in colors:
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
    page = headless.context(browser, java_script_enabled=False).new_page()
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


def test_a_server_that_is_asked_to_end_does(study, serve):
  one = serve(f'--study={study.folder}', '--port=0')
  one._process.terminate()
  assert one._process.wait(60) == -signal.SIGTERM
