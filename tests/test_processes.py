"""Launchers in several processes: all end alike, and none hangs."""

import ast
import csv
import json
import pathlib
import shutil

from helpers import commands
from helpers import several_hosts
import jax
import pytest

from jumprelu_jax import errors
from jumprelu_jax import hosts

ROOT = pathlib.Path(__file__).parents[1]
IN_PROCESSES = {'train', 'sweep'}
# After both have joined; starting Python and importing JAX is not counted.
TOLD_S = 10.0


@pytest.fixture
def flags(overrides, tmp_path):
  """Flags of a small run over the devices of two processes."""
  values = {
    'mesh.data': 2,
    'objective.aux_k': 8,
    'train.steps': 32,
    'train.steps_per_log': 4,
    'train.steps_per_checkpoint': 4,
  }
  more = [f'--config.{key}={value}' for key, value in values.items()]
  return [*overrides, *more, f'--workdir={tmp_path / "run"}']


@pytest.mark.slow
def test_a_sweep_of_three_saes_of_two_architectures(flags, tmp_path):
  """Checkpoints of all three are written at the same time."""
  # Beside the two of `overrides`.
  third = '--config.sweep.saes=topk/aux_k/4'
  found = several_hosts.outcomes(several_hosts.launch('sweep', *flags, third))
  assert [code for code, _, _ in found] == [0, 0], found
  with (tmp_path / 'run' / 'results.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [row['architecture'] for row in rows] == ['jumprelu'] * 2 + ['topk']
  for sae in (tmp_path / 'run').glob('*/checkpoints'):
    assert {path.name for path in sae.iterdir()} == {'28', '32'}


@pytest.mark.slow
def test_train_in_two_processes(flags, tmp_path):
  found = several_hosts.outcomes(several_hosts.launch('train', *flags))
  assert [code for code, _, _ in found] == [0, 0], found
  assert len((tmp_path / 'run' / 'results.csv').read_text().splitlines()) == 2


def test_which_launchers_run_in_processes():
  """As they say to `launch.run`, which refuses the flag of all others."""
  found = set()
  for path in (ROOT / 'experiments').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.keyword) and node.arg == 'in_processes':
        found.add(path.stem)
  assert found == IN_PROCESSES


@pytest.mark.slow
@pytest.mark.parametrize('launcher', ['evaluate', 'harvest', 'records'])
def test_others_refuse_processes(launcher, tmp_path):
  needed = {
    'evaluate': [f'--sae={tmp_path}'],
    'harvest': [f'--workdir={tmp_path / "store"}'],
    'records': [f'--sae={tmp_path}', f'--out={tmp_path / "records"}'],
  }
  done = commands.run(
    launcher, *needed[launcher], '--processes=127.0.0.1:9,2,0'
  )
  assert done.returncode == 2, done.stderr
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith(
    'error: --processes=127.0.0.1:9,2,0: this command runs'
  )
  assert '--host=I --hosts=N' in line
  assert not list(tmp_path.iterdir())


def edited(folder, name, old, new):
  """Returns a copy of the repository's code with a change."""
  for package in ('jumprelu_jax', 'experiments', 'configs'):
    shutil.copytree(
      ROOT / package,
      folder / package,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  path = folder / 'jumprelu_jax' / name
  assert path.read_text().count(old) == 1
  path.write_text(path.read_text().replace(old, new))
  return folder


def assert_told(found, *words):
  """All processes end with one line that has these words, and soon."""
  for code, said, _ in found:
    assert code == 2, said
    (line,) = said.strip().splitlines()
    assert line.startswith('error: the processes do not run the same: '), line
    for word in words:
      assert word in line


@pytest.fixture(scope='module')
def seconds_to_start(tmp_path_factory):
  """What two processes take to start and be refused."""
  workdir = tmp_path_factory.mktemp('start') / 'none'
  processes = several_hosts.launch('sweep', f'--workdir={workdir}')
  found = several_hosts.outcomes(processes)
  for code, said, _ in found:
    assert code == 2, said
    assert '--config is missing' in said
  return max(seconds for _, _, seconds in found)


OTHER = [
  ('seed', 0, 1),
  ('optimizer.learning_rate', 0.001, 0.002),
  ('mesh.latent', 1, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(('key', 'ours', 'theirs'), OTHER, ids=str)
def test_another_config_is_told(
  flags, tmp_path, seconds_to_start, key, ours, theirs
):
  own = [[f'--config.{key}={value}'] for value in (ours, theirs)]
  found = several_hosts.outcomes(several_hosts.launch('sweep', *flags, own=own))
  shown = f'config.{key}: {ours} in process 0, {theirs} in process 1'
  assert_told(found, shown)
  assert max(s for _, _, s in found) < seconds_to_start + TOLD_S
  assert not (tmp_path / 'run').exists()


CHANGES = [
  # The order of rows, and the optimizer.
  ('activations/batches.py', 'import numpy as np\n', 'import numpy as np\n\n'),
  ('optim.py', 'import jax\n', 'import jax\n# other\n'),
]


@pytest.mark.slow
@pytest.mark.parametrize('change', CHANGES, ids=lambda change: change[0])
def test_another_source_is_told(flags, tmp_path, seconds_to_start, change):
  root = edited(tmp_path / 'other', *change)
  found = several_hosts.outcomes(
    several_hosts.launch('train', *flags, roots=[ROOT, root])
  )
  assert_told(found, f'jumprelu_jax/{change[0]}: ')
  assert max(s for _, _, s in found) < seconds_to_start + TOLD_S
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_told(flags, tmp_path):
  own = [[f'--workdir={tmp_path / name}'] for name in ('one', 'other')]
  found = several_hosts.outcomes(several_hosts.launch('sweep', *flags, own=own))
  for code, said, _ in found:
    assert code == 2, said
    assert 'is not seen by process 1; give a folder that all' in said


@pytest.mark.slow
def test_all_end_with_the_one_that_fails(flags, tmp_path):
  """The first alone looks at the folder; the second waits for it."""
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'letter.txt').write_text('of someone')
  found = several_hosts.outcomes(several_hosts.launch('sweep', *flags))
  (first, said_first, _), (second, said_second, _) = found
  assert (first, second) == (2, 2), found
  assert 'exists and holds no run' in said_first
  assert 'error: process 0 has ended: --workdir=' in said_second
  assert 'exists and holds no run' in said_second


def told(facts, monkeypatch):
  """What `agree` says of the facts of several processes; '' if nothing."""
  monkeypatch.setattr(hosts, 'are_several', lambda: True)
  texts = [
    json.dumps({key: json.dumps(value) for key, value in of_one.items()})
    for of_one in facts
  ]
  monkeypatch.setattr(hosts, '_gather', lambda name, value: texts)
  try:
    hosts.agree('test', lambda: facts[0])
  except errors.InputError as error:
    return str(error)
  return ''


def test_who_differs_is_named(monkeypatch):
  same = {'seed': 3, 'mesh': {'data': 2}, 'scales': [0.1, 0.2]}
  assert told([same] * 3, monkeypatch) == ''
  said = told([same, same | {'seed': 4}, same], monkeypatch)
  assert 'seed: 3 in processes 0, 2, 4 in process 1.' in said
  assert 'mesh' not in said
  said = told([same, {'seed': 3, 'scales': [0.1, 0.3]}], monkeypatch)
  assert 'mesh: {"data": 2} in process 0, nothing in process 1; ' in said
  assert 'scales: [0.1, 0.2] in process 0, [0.1, 0.3] in process 1' in said


def test_software_has_every_source_file():
  found = hosts.software()
  package = ROOT / 'jumprelu_jax'
  for path in package.rglob('*.py'):
    assert f'jumprelu_jax/{path.relative_to(package)}' in found
  assert found['jax'] == jax.__version__
  assert found['jax_enable_x64'] == 'False'
