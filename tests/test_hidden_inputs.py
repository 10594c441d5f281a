"""Neither the clock nor anything else unsaid changes what a run computes."""

import json
import locale
import random
import shutil
import time

from helpers import sweeping
import pytest

from jumprelu_jax import inputs
from jumprelu_jax import runs
from jumprelu_jax.text import tokens

CHAT = [{'role': 'user', 'content': 'abc'}]


@pytest.fixture
def chat_lm(tiny_lm, tmp_path):
  """Returns a function from a chat template to a model's folder."""
  pytest.importorskip('transformers')
  folder = tmp_path / 'lm'
  shutil.copytree(tiny_lm, folder)

  def write(template):
    path = folder / 'tokenizer_config.json'
    settings = json.loads(path.read_text())
    settings['chat_template'] = template
    path.write_text(json.dumps(settings))
    return folder

  return write


@pytest.mark.parametrize(
  ('form', 'want'),
  [
    ('%d %b %Y', '26 Jul 2024'),
    ('%A, %-d %B %Y', 'Friday, 26 July 2024'),
    ('%Y-%m-%dT%H:%M:%S%z', '2024-07-26T00:00:00'),
    ('%I:%M %p', '12:00 AM'),
    ('%%b is %b', '%b is Jul'),
    ('%c %s', 'Fri Jul 26 00:00:00 2024 1721952000'),
  ],
  ids=str,
)
def test_templates_are_told_a_fixed_date(chat_lm, form, want):
  template = "{{ strftime_now('" + form + "') }}: {{ messages[0].content }}"
  render = tokens.chat_renderer(chat_lm(template))
  assert render(CHAT) == f'{want}: abc'


def test_the_date_is_in_english_everywhere(chat_lm, monkeypatch):
  render = tokens.chat_renderer(chat_lm("{{ strftime_now('%a %d %B %p') }}"))
  try:
    before = locale.setlocale(locale.LC_TIME)
    locale.setlocale(locale.LC_TIME, 'de_DE.UTF-8')
  except locale.Error:
    before = None  # such locales are not everywhere
  monkeypatch.setenv('TZ', 'Asia/Tokyo')
  time.tzset()
  try:
    assert render(CHAT) == 'Fri 26 July AM'
  finally:
    if before is not None:
      locale.setlocale(locale.LC_TIME, before)
    monkeypatch.undo()
    time.tzset()


def test_the_clock_of_others_goes_on(chat_lm):
  import transformers

  folder = chat_lm("{{ strftime_now('%Y') }}")
  assert tokens.chat_renderer(folder)(CHAT) == '2024'
  theirs = transformers.AutoTokenizer.from_pretrained(folder)
  year = theirs.apply_chat_template(CHAT, tokenize=False)
  assert year == time.strftime('%Y') != '2024'


def test_templates_draw_alike_and_leave_the_generator_alone(chat_lm):
  render = tokens.chat_renderer(chat_lm('{{ range(100000) | random }}'))
  random.seed(5)
  want = random.random()
  random.seed(5)
  assert render(CHAT) == render(CHAT)
  assert random.random() == want


@pytest.fixture(scope='module')
def finished(tiny_run, tiny_text, tmp_path_factory):
  """(run, its folder, its text): a run of one SAE."""
  base = tmp_path_factory.mktemp('hidden')
  text = base / 'heldout.jsonl'
  shutil.copy(tiny_text, text)
  run = tiny_run.with_values(
    {
      'sweep.saes': ['jumprelu/l0/1e-3'],
      'text.heldout': str(text),
      'evaluation.sequences': 20,
    }
  )
  sweeping.run_sweep(run, base / 'run')
  return run, base / 'run', text


def test_a_run_is_evaluated_on_the_text_that_it_began_with(finished, tmp_path):
  run, workdir, text = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (sae,) = (tmp_path / 'run').glob('jumprelu*')
  before = json.loads((sae / 'evaluation.json').read_text())
  # As after a kill in evaluation; the text has changed since.
  for name in ('evaluation.json', 'latents.npz', 'seal.json'):
    (sae / name).unlink()
  changed = text.read_text()
  text.write_text('{"text": "something else, much longer, says so"}\n' * 30)
  try:
    assert sweeping.run_sweep(run, tmp_path / 'run') == [before]
  finally:
    text.write_text(changed)


def test_kept_text_serves_those_who_ask_for_less_of_it(finished):
  run, workdir, _ = finished
  path = workdir / runs.HELDOUT
  whole = inputs.prepare(run).find_heldout(path).heldout_NL
  assert len(whole) == 20
  for values, count in (
    ({'evaluation.sequences': 7}, 7),
    ({'evaluation.sequences': 21}, None),
    ({'evaluation.sequences': 0}, None),
    ({'text.context_length': 8}, None),
    ({'seed': 3}, None),
  ):
    found = inputs.prepare(run.with_values(values)).find_heldout(path).kept_NL
    assert (found is None) == (count is None)
    if count:
      assert (found == whole[:count]).all()
