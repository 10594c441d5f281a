"""Mutation testing: changes lines of the package and runs the default tests.

  python -m tests.mutation --workdir=DIR --mutations=80 --seed=0

Finds out which test files of the default group execute which lines of the
package, samples small changes of these lines, and for each runs the test files
that execute its line until a test fails. What no test notices has survived; it
is printed with the files that ran.

DIR keeps a copy of the sources, the map of lines and the results: the same
command resumes, and `--report` prints the results so far. The map
is of files, not of tests: a function that one test compiles is only called by
the next, which depends on its lines without executing them. It does not see
lines that are executed in processes which tests start.

Processes are forked from one that has imported the libraries but neither the
package nor a device of JAX, and share a cache of compiled programs.
"""

import argparse
import collections
import contextlib
import functools
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import traceback

from tests.mutation import changes

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = 'jumprelu_jax'
# What is changed: patterns, relative to the package.
TARGETS = (
  'ops.py', 'kernels.py', 'objectives.py', 'selection.py', 'sparse.py',
  'components.py', 'optim.py', 'train.py', 'metrics.py', 'evaluation.py',
  'splicing.py', 'checkpoint.py', 'sae/*.py', 'activations/*.py',
)  # fmt: skip
LIBRARIES = (
  'datasets', 'flax.struct', 'jax', 'matplotlib.pyplot', 'optax', 'pytest',
  'orbax.checkpoint', 'scipy.stats', 'tensorboardX', 'torch', 'transformers',
)  # fmt: skip
NOT_COPIED = shutil.ignore_patterns('.*', 'runs', 'build', 'dist', '*.egg-info')
FIRST = 4  # files that run before the rest, whose collection takes seconds
MAP_S = 3600  # what a file may take as it is
LEAST_S = 120  # what files may take of a mutation, or ten times their usual
OUTCOMES = ('killed', 'import', 'timeout', 'crash', 'survived')
BY_CODE = {0: 'survived', 1: 'killed', None: 'timeout'}
BY_CODE |= {2: 'import', 4: 'import'}  # of test files; of conftest.py
NO_TESTS, BROKEN = 5, 70  # exit codes: of pytest; of a process without one


def run_jobs(jobs, slots):
  """Runs jobs, in each slot one at a time.

  Args:
    jobs: functions from a slot to a generator; it yields (process, seconds that
      it may take) and is sent the exit code, None where time was up.
    slots: folders.
  """
  waiting, running = collections.deque(jobs), {}

  def advance(slot, steps, code):
    try:
      process, limit_s = steps.send(code)
      running[slot] = steps, process, time.monotonic() + limit_s
    except StopIteration:
      running.pop(slot, None)

  try:
    while waiting or running:
      for slot in slots:
        if slot not in running and waiting:
          advance(slot, waiting.popleft()(slot), None)
      for slot, (steps, process, end) in list(running.items()):
        done, status = os.waitpid(process, os.WNOHANG)
        if done or time.monotonic() > end:
          _kill(process)  # with what its tests started
          code = os.waitstatus_to_exitcode(status) if done else None
          if not done:
            os.waitpid(process, 0)
          advance(slot, steps, code)
      time.sleep(0.02)
  finally:
    for _, process, _ in running.values():
      _kill(process)


def _kill(process):
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process, signal.SIGKILL)


def start_pytest(tree, tests, slot, record=None):
  """Forks a process that runs test files of a tree until a test fails.

  Its output is written to `log` in the slot, and the lines that are executed to
  `record`, if it is given. Returns the process's number.
  """
  process = os.fork()
  if process:
    return process
  code = BROKEN
  try:
    os.setsid()
    with (slot / 'log').open('wb') as file:
      os.dup2(file.fileno(), 1)
      os.dup2(file.fileno(), 2)
    os.chdir(tree)
    os.environ['PYTHONPATH'] = str(tree)
    if not record:  # a mutation's bytecode must not be found by the next
      sys.dont_write_bytecode = True
      os.environ['PYTHONDONTWRITEBYTECODE'] = '1'
    others = [path for path in sys.path if path not in ('', str(ROOT))]
    sys.path[:] = [str(tree), *others]
    sys.modules.pop('tests', None)
    found = pathlib.Path(importlib.util.find_spec(PACKAGE).origin)
    if not found.is_relative_to(tree) or PACKAGE in sys.modules:
      raise RuntimeError(f'{PACKAGE} would be imported from {found}')
    import pytest

    recorder = Recorder(tree, record) if record else None
    options = ['-x', '-q', '-n', '0', '-p', 'no:cacheprovider']
    options += [f'--basetemp={slot / "tmp"}', *tests]
    code = pytest.main(options, [recorder] if recorder else [])
    if recorder:
      recorder.save()
  except BaseException:
    code = BROKEN
    traceback.print_exc()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Recorder:
  """A plugin of pytest that writes which lines a test file executes."""

  def __init__(self, tree, path):
    import coverage

    self._tree, self._path, self._began = tree, path, time.monotonic()
    self._coverage = coverage.Coverage(
      data_file=None, config_file=False, source=[str(tree / PACKAGE)]
    )
    self._coverage.start()

  def pytest_collection_finish(self):
    self._coverage.switch_context('tests')

  def save(self):
    """Writes, for each file, lines executed by imports and those by tests."""
    self._coverage.stop()
    data, lines = self._coverage.get_data(), {}
    for file in data.measured_files():
      contexts = data.contexts_by_lineno(file).items()
      lines[os.path.relpath(file, self._tree)] = [
        [line for line, of in contexts if context in of]
        for context in ('', 'tests')
      ]
    seconds = round(time.monotonic() - self._began, 2)
    self._path.write_text(json.dumps({'seconds': seconds, 'lines': lines}))


def copy_sources(folder):
  """Returns a copy of the root, made once."""
  tree, aside = folder / 'tree', folder / 'aside'
  if not tree.exists():
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(ROOT, aside, ignore=NOT_COPIED)
    aside.rename(tree)
  for file in (*tree.glob(f'{PACKAGE}/**/*.py'), *tree.glob('tests/**/*.py')):
    now = ROOT / file.relative_to(tree)
    is_as_copied = now.exists() and now.read_bytes() == file.read_bytes()
    if not is_as_copied and file.parent.name != 'mutation':
      sys.exit(f'{now} is not what it was: take another --workdir')
  return tree


def read_targets(tree, patterns):
  """Returns the files that may be changed, {path: bytes}."""
  sources = {}
  for pattern in patterns:
    files = sorted(tree.glob(f'{PACKAGE}/{pattern}'))
    if not files:
      sys.exit(f'{PACKAGE}/{pattern} does not exist; see TARGETS and --only')
    sources |= {str(f.relative_to(tree)): f.read_bytes() for f in files}
  return sources


def import_libraries(cache):
  """Imports what processes would, with the environment that they inherit."""
  environment = {
    'JAX_PLATFORMS': 'cpu',
    # Programs run for a moment: to optimise them would take most of the time.
    'XLA_FLAGS': (
      '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
    ),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }
  for name, value in environment.items():
    os.environ.setdefault(name, value)
  for name in LIBRARIES:
    importlib.import_module(name)


def map_lines(tree, tests, folder, slots):
  """Returns what `Recorder` wrote of each test file of the default group."""
  if importlib.util.find_spec('coverage') is None:
    sys.exit('lines are mapped by coverage: pip install coverage')
  folder.mkdir(exist_ok=True)
  paths = {test: folder / f'{test.replace("/", ".")}.json' for test in tests}

  def record(test, slot):
    for _ in range(2):  # first to compile, then to measure
      code = yield start_pytest(tree, [test], slot, slot / 'map.json'), MAP_S
    if code in (0, NO_TESTS):
      (slot / 'map.json').rename(paths[test])
      print('mapped', test, flush=True)
    else:
      print(f'{test} fails as it is, and is left out', flush=True)

  missing = [test for test, path in paths.items() if not path.exists()]
  run_jobs([functools.partial(record, test) for test in missing], slots)
  return {
    test: json.loads(path.read_text())
    for test, path in paths.items()
    if path.exists()
  }


def find_tests(mutation, records):
  """Returns the files that execute a line: its namesake, then the quickest."""
  first, last = mutation.span
  found = []
  for test, record in records.items():
    imported, run = record['lines'].get(mutation.path, ((), ()))
    # What imports execute is tested by those who use the module at all.
    if run and any(first <= line <= last for line in (*run, *imported)):
      namesake = f'test_{pathlib.Path(mutation.path).name}'
      is_other = pathlib.Path(test).name != namesake
      found.append((is_other, record['seconds'], test))
  return [test for *_, test in sorted(found)]


def try_mutation(mutation, tests, records, results, slot):
  """Runs tests on a mutation, and adds a line to the results."""
  path = slot / 'tree' / mutation.path
  source, times = path.read_bytes(), path.stat()
  path.write_bytes(mutation.apply(source))
  began, ran = time.monotonic(), []
  for some in filter(None, (tests[:FIRST], tests[FIRST:])):
    ran += some
    usual_s = sum(records[test]['seconds'] for test in some)
    process = start_pytest(slot / 'tree', some, slot)
    code = yield process, max(LEAST_S, 10 * usual_s)
    if code != 0:
      break
  said = (slot / 'log').read_text(errors='replace')
  if code in (BROKEN, NO_TESTS):
    raise RuntimeError(f'pytest could not run for {mutation}: {said}')
  failed = re.search(r'^(?:FAILED|ERROR) (.+?)(?: - |$)', said, re.MULTILINE)
  path.write_bytes(source)
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
  line, before, after = mutation.show(source)
  result = {
    'key': mutation.key, 'path': mutation.path, 'line': line,
    'kind': mutation.kind, 'before': before, 'after': after,
    'outcome': BY_CODE.get(code, 'crash'), 'tests': ran,
    'failed': failed[1] if failed else None,
    'seconds': round(time.monotonic() - began, 1),
  }  # fmt: skip
  with results.open('a') as file:
    file.write(json.dumps(result) + '\n')
  print_result(result)


def print_result(result):
  words = '{outcome}, {seconds} s: {path}:{line}, {kind}\n- {before}\n+ {after}'
  print(words.format(**result))
  print(' ', result['failed'] or ' '.join(result['tests']), flush=True)


def read_results(path):
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def report(results):
  """Prints what survived, and counts and kill rates of files and kinds."""
  rows = collections.defaultdict(collections.Counter)
  for result in results:
    for row in ('all', result['path'], result['kind']):
      rows[row][result['outcome']] += 1
    if result['outcome'] == 'survived':
      print_result(result)
  print('', *(f'{word:>9}' for word in ('number', *OUTCOMES, 'kill rate')))
  for name, row in sorted(rows.items()):
    counts = row.total(), *(row[word] for word in OUTCOMES)
    rate = 1 - row['survived'] / row.total()
    print('', *(f'{count:9}' for count in counts), f'{rate:9.2f}  {name}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--mutations', type=int, default=80)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--only', help='patterns, instead of TARGETS')
  parser.add_argument('--tests', help='not all; in a DIR of its own')
  parser.add_argument('--report', action='store_true', help='run nothing')
  flags = parser.parse_args()
  folder = flags.workdir.absolute()
  results = folder / 'results.jsonl'
  if flags.report:
    report(read_results(results))
    return
  slots = [folder / f'slot_{i}' for i in range(flags.processes)]
  for slot in slots:
    slot.mkdir(parents=True, exist_ok=True)
  tree = copy_sources(folder)
  sources = read_targets(tree, flags.only.split(',') if flags.only else TARGETS)
  files = sorted(tree.glob('tests/**/test_*.py'))
  tests = [str(file.relative_to(tree)) for file in files]
  tests = flags.tests.split(',') if flags.tests else tests
  import_libraries(folder / 'compiled')
  records = map_lines(tree, tests, folder / 'map', slots)
  found = [
    m for path in sources for m in changes.find_mutations(path, sources[path])
  ]
  tests = {mutation: find_tests(mutation, records) for mutation in found}
  covered = [mutation for mutation in found if tests[mutation]]
  print(
    f'{len(found)} possible mutations, {len(covered)} of lines that tests run'
  )
  done = {result['key'] for result in read_results(results)}
  jobs = [
    functools.partial(try_mutation, m, tests[m], records, results)
    for m in changes.sample_mutations(covered, flags.mutations, flags.seed)
    if m.key not in done
  ]
  for slot in slots if jobs else ():
    shutil.rmtree(slot / 'tree', ignore_errors=True)
    shutil.copytree(tree, slot / 'tree')
  run_jobs(jobs, slots)
  report(read_results(results))


if __name__ == '__main__':
  main()
