"""The commands, as processes: killed, run again, compared."""

import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import time

from helpers import chat_server
from helpers import small_world
from helpers.chat_server import Reply
import pytest

pytestmark = pytest.mark.slow  # whole commands
ROOT = pathlib.Path(__file__).parent.parent
MEASURES = 'token_lookup,simulation,detection'


def command(*args):
  return [sys.executable, '-m', 'experiments.autointerp', *map(str, args)]


def run(*args):
  environment = {**os.environ, 'OPENAI_API_KEY': 'secret-key'}
  return subprocess.run(
    command(*args), cwd=ROOT, capture_output=True, text=True, env=environment
  )


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world') / 'records'
  small_world.make(folder, more=6)
  return folder


def score(records, out, server=None, *more):
  flags = ['score', f'--records={records}', f'--out={out}', '--min_windows=2']
  if server is not None:
    flags += [
      f'--measures={MEASURES}', f'--endpoint={server.url}', '--model=m',
      '--scoring=4', '--background=4', '--concurrency=4',
    ]  # fmt: skip
  return [*flags, *more]


def wait_for(is_there):
  deadline = time.monotonic() + 120
  while not is_there():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def bodies_of(path):
  """Questions on the disk, as requests have them."""
  with sqlite3.connect(path) as file:
    rows = file.execute('SELECT request FROM answers').fetchall()
  return {json.dumps(json.loads(row)['messages']) for (row,) in rows}


def asked(body):
  return json.dumps([[m['role'], m['content']] for m in body['messages']])


def test_a_killed_run_asks_only_what_is_missing(records, tmp_path):
  def slowly(body, _):
    return Reply(chat_server.honest(body), delay_s=0.05)

  with chat_server.Server(slowly) as server:
    done = run(*score(records, tmp_path / 'whole', server))
    assert done.returncode == 0, done.stderr
    every = [asked(body) for body in server.requests]
    assert len(every) == len(set(every)) > 60

    out = tmp_path / 'killed'
    process = subprocess.Popen(
      command(*score(records, out, server)),
      cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
      wait_for(lambda: len(server.requests) > len(every) + 20)
    finally:
      process.send_signal(signal.SIGKILL)
      process.wait()
    time.sleep(0.3)  # what is under way arrives
    before = len(server.requests)
    kept = bodies_of(out / 'answers.sqlite')
    assert 10 < len(kept) < len(every)
    assert not (out / 'summary.json').exists()

    done = run(*score(records, out, server))
    assert done.returncode == 0, done.stderr
    later = [asked(body) for body in server.requests[before:]]
    assert not set(later) & kept
    assert set(later) | kept == set(every)
    assert f'spent: {len(later)} requests' in done.stderr
    for name in ('scores.csv', 'scores.parquet'):
      there = (tmp_path / 'whole' / name).read_bytes()
      assert (out / name).read_bytes() == there

    # Once more: everything is there, and it costs nothing.
    before = len(server.requests)
    done = run(*score(records, out, server, '--price_in=1', '--max_cost=0'))
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == before
    assert 'spent: 0 requests, 0 tokens in, 0 out, cost 0' in done.stderr
  for path in out.iterdir():
    assert b'secret-key' not in path.read_bytes()
  summary = json.loads((out / 'summary.json').read_text())
  assert summary['scores']['simulation']['reasons'] == {
    'dead': 1, 'too_few_examples': 1, 'constant_truth': 1,
  }  # fmt: skip


def test_what_it_would_cost_is_said_and_refused(records, tmp_path):
  with chat_server.Server(lambda body, _: chat_server.honest(body)) as server:
    prices = ('--price_in=1000', '--price_out=1000')
    done = run(*score(records, tmp_path / 'a', server, *prices, '--dry_run'))
    assert done.returncode == 0, done.stderr
    assert 'estimate, of what is not kept yet: ' in done.stderr
    assert 'cost ' in done.stderr
    done = run(
      *score(records, tmp_path / 'a', server, *prices, '--max_cost=0.01')
    )
    assert done.returncode == 2
    assert 'is over --max_cost=0.01' in done.stderr
    assert not server.requests
    assert not (tmp_path / 'a' / 'summary.json').exists()


def test_scores_without_an_endpoint_are_compared(records, tmp_path):
  for label in ('jumprelu', 'random'):
    done = run(*score(records, tmp_path / label, None, f'--label={label}'))
    assert done.returncode == 0, done.stderr
    assert 'token_lookup' in done.stdout
    assert not (tmp_path / label / 'answers.sqlite').exists()
  out = tmp_path / 'tables'
  both = f'{tmp_path / "jumprelu"},{tmp_path / "random"}'
  done = run('compare', f'--scores={both}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  assert 'odds of a score above 0.9: jumprelu over the others' in done.stdout
  assert {path.name for path in out.iterdir()} == {
    'averages.csv', 'odds.csv', 'scores.png', 'scores.pdf', 'scores.csv',
  }  # fmt: skip


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('rate',), 'expected score or compare first'),
    (('score', '--records=none', '--out=x'), 'holds no records.json'),
  ],
)
def test_bad_commands_are_one_line(args, message):
  done = run(*args)
  assert done.returncode != 0
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
