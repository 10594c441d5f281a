"""Mutations of small sources, by hand."""

import functools
import os
import textwrap
import time

import pytest

from tests.mutation import __main__ as command
from tests.mutation import changes

# (kind, line, the lines that its mutations of that kind are)
LINES = (
  ('arithmetic', 'y = (a) + b', ['y = (a) - b']),
  ('arithmetic', 'y = a - b * c', ['y = a + b * c', 'y = a - b / c']),
  ('arithmetic', 'y = u**2 / n', ['y = u*2 / n', 'y = u**2 * n']),
  ('arithmetic', 'y -= a', ['y += a']),
  ('arithmetic', 'y = a // b % c', ['y = a * b % c', 'y = a // b // c']),
  ('arithmetic', "y = a + 'text'", []),
  ('comparison', 'y = a < b <= c', ['y = a > b <= c', 'y = a < b >= c']),
  ('comparison', 'y = a == b', ['y = a != b']),
  ('comparison', 'y = a is not b', ['y = a is b']),
  ('comparison', 'y = a in b', ['y = a not in b']),
  ('boundary', 'y = a < b >= c', ['y = a <= b >= c', 'y = a < b > c']),
  ('boundary', 'y = a == b', []),
  ('sign', 'y = -a', ['y = a']),
  ('sign', 'y = x[:, -1]', ['y = x[:, 1]']),
  ('constant', 'y = f(0, k=1)', ['y = f(1, k=1)', 'y = f(0, k=2)']),
  ('constant', 'y = 0.5 + 0.0', ['y = 0.75 + 0.0', 'y = 0.5 + 1.0']),
  ('constant', 'y = True', ['y = False']),
  ('constant', 'y = x.sum(axis=-1)', []),
  ('axis', 'y = f(x, axis=0)', ['y = f(x, axis=1)']),
  ('axis', 'y = f(x, axis=-1)', ['y = f(x, axis=0)']),
  ('axis', 'y = f(axis=(0, 2))', ['y = f(axis=(1, 2))', 'y = f(axis=(0, 1))']),
  ('axis', 'y = jnp.sum(x, 1)', ['y = jnp.sum(x, 0)']),
  ('axis', 'y = max(x, 1)', []),
  ('gradient', 'y = lax.stop_gradient(x) + b', ['y = (x) + b']),
  ('logic', 'y = a and b or c', ['y = a or b or c', 'y = a and b and c']),
  ('logic', 'y = not (a)', ['y = (a)']),
  ('swap', 'y = max(a, jnp.sum(b))', ['y = min(a, jnp.sum(b))',
                                      'y = max(a, jnp.mean(b))']),
  ('swap', 'y = sum(a)', []),
  ('swap', 'y = x.argmin()', ['y = x.argmax()']),
  ('keyword', 'y = jnp.f(x, k=a, l=(b))', ['y = jnp.f(x, l=(b))',
                                           'y = jnp.f(x, k=a, )']),
  ('keyword', 'y = f(x, k=a)', []),
)  # fmt: skip


def changed(source, kind=None):
  content = textwrap.dedent(source).encode()
  found = changes.find_mutations('a.py', content)
  return [
    m.apply(content).decode() for m in found if kind is None or m.kind == kind
  ]


@pytest.mark.parametrize(('kind', 'line', 'expected'), LINES)
def test_kind(kind, line, expected):
  assert changed(line, kind) == expected


@pytest.mark.parametrize(
  'source',
  [
    '"""Adds 1 + 1."""',
    "y = 'a < 1' + f'{a + 1:.2f}'",
    'def f(a: 0 | 1) -> 0 | 1: ...',
    'Sums = dict[str, float | int]',
    'raise ValueError(1 + 1)',
    'raise errors[1 + 1]',
    'warnings.warn(1 + 1)',
    'PIECE_BYTES = 16 << 20',
    """
    def __repr__(self):
      return 1 + 1
    """,
    """
    @dataclasses.dataclass(frozen=True)
    class A:
      a: 0 | 1
    """,
  ],
)
def test_texts_types_and_knobs_are_left_alone(source):
  assert changed(source) == []


def test_message_of_an_assertion_is_left_alone():
  assert changed('assert a < b, 1 + 1', 'comparison') == ['assert a > b, 1 + 1']
  assert changed('assert a < b, 1 + 1', 'arithmetic') == []


def test_mutation_is_shown_by_its_line():
  source = b"# \xe2\x80\xa8\nif a:\n  b = 'e\xcc\x81', c - d\n"
  (found,) = changes.find_mutations('a.py', source)
  assert found.show(source) == (
    3,
    "b = 'e\u0301', c - d",
    "b = 'e\u0301', c + d",
  )


def test_span_is_the_statement_or_its_head():
  source = textwrap.dedent("""
    @one(a < b)
    def two(c=a == b):
      three(
        a is b,
      )
      if (a in b
          and c):
        four()
  """).encode()
  found = changes.find_mutations('a.py', source)
  spans = {m.new: m.span for m in found if m.kind == 'comparison'}
  assert spans == {
    '>': (2, 3),
    '!=': (2, 3),
    'is not': (4, 6),
    'not in': (7, 8),
  }


@pytest.fixture
def found():
  """Mutations of three files, of 120 constants and 2 signs, of 12, and of 1."""
  sources = {
    'large.py': '\n'.join(['y = 1'] * 118 + ['y = -1'] * 2),
    'small.py': '\n'.join(['y = 1'] * 12),
    'least.py': 'y = 1',
  }
  return [
    m
    for path, text in sources.items()
    for m in changes.find_mutations(path, text.encode())
  ]


def test_sample_has_every_file_by_its_share(found):
  sample = changes.sample_mutations(found, 20, seed=0)
  paths = [m.path for m in sample]
  assert len(set(sample)) == 20
  assert [paths.count(p) for p in ('large.py', 'small.py', 'least.py')] == [
    17, 2, 1,
  ]  # fmt: skip


def test_sample_has_every_kind_evenly(found):
  sample = changes.sample_mutations(found[:122], 6, seed=0)
  kinds = [m.kind for m in sample]
  assert sorted(kinds) == ['constant'] * 4 + ['sign'] * 2
  assert set(kinds[:2]) == {'constant', 'sign'}


def test_sample_is_of_its_seed_and_grows(found):
  sample = changes.sample_mutations(found, 20, seed=0)
  assert sample == changes.sample_mutations(list(found), 20, seed=0)
  assert sample != changes.sample_mutations(found, 20, seed=1)
  assert set(sample) < set(changes.sample_mutations(found, 40, seed=0))
  assert set(changes.sample_mutations(found, 999, seed=0)) == set(found)


def test_tests_are_the_namesake_then_the_quickest():
  (change, *_) = changes.find_mutations('a/b.py', b'y = 1\n')
  lines = {
    'quick': [[1], [5]],
    'importing_alone': [[1], []],
    'a_slow': [[], [1]],
    'elsewhere': [[2], [5]],
    'b': [[1], [5]],
  }
  records = {
    f'tests/test_{name}.py': {'seconds': s, 'lines': {'a/b.py': of}}
    for (name, of), s in zip(lines.items(), (1, 2, 3, 4, 5), strict=True)
  }
  assert command.find_tests(change, records) == [
    'tests/test_b.py', 'tests/test_quick.py', 'tests/test_a_slow.py',
  ]  # fmt: skip


def test_jobs_are_sent_exit_codes_and_have_no_more_than_their_time(tmp_path):
  seen, slots = {}, [tmp_path / 'one', tmp_path / 'other']

  def job(script, slot):
    began = time.monotonic()
    for part in script:
      arguments = ['sh', '-c', part]
      process = os.posix_spawn('/bin/sh', arguments, {}, setsid=True)
      code = yield process, 0.2
      seen.setdefault(' '.join(script), [slot]).append(code)
    assert time.monotonic() - began < 5

  scripts = (['sleep 9'], ['exit 3', 'kill -9 $$'], ['exit 0'])
  jobs = [functools.partial(job, script) for script in scripts]
  command.run_jobs(jobs, slots)
  assert seen == {
    'sleep 9': [slots[0], None],
    'exit 3 kill -9 $$': [slots[1], 3, -9],
    'exit 0': [slots[1], 0],
  }
