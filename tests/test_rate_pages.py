"""The pages of a rating study, asked for without a browser."""

import re
import shutil
from urllib import parse

from helpers import headless
from helpers import rated_records
import pytest

from experiments.rate import server
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib

RATERS = rated_records.RATERS
HOST = {'Host': 'localhost'}


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return rated_records.write_six(tmp_path_factory.mktemp('records'))


@pytest.fixture
def study(records, tmp_path):
  return rated_records.prepare_small(tmp_path / 'study', records)


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
  ids=[
    'origin', 'hidden origin', 'cross-site', 'same-site', 'host', 'no token',
    'other token', 'odd token', 'rating', 'no rating', 'long', 'huge',
  ],
)  # fmt: skip
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


def test_a_missing_browser_is_no_silent_pass(monkeypatch):
  monkeypatch.setattr(shutil, 'which', lambda name: None)
  missing = pytest.raises(pytest.fail.Exception, match='install chromium')
  with missing, headless.chromium():
    pass
