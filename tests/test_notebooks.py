"""The notebooks run from top to bottom, and are kept small."""

import os
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'experiments' / 'colab').glob('*.ipynb'))
_MAX_BYTES = 300_000  # of a notebook with its pictures
_SECONDS = 600
PICTURES = {'1_jumprelu': 3, '2_sweep': 2, '3_latents': 0}


def test_there_are_three():
  assert [path.name[:1] for path in NOTEBOOKS] == ['1', '2', '3']


def texts(notebook):
  """Yields what a notebook's cells printed."""
  for cell in notebook.cells:
    for output in cell.get('outputs', ()):
      yield output.get('text', '')
      yield output.get('data', {}).get('text/plain', '')


def num_pictures(notebook):
  outputs = [o for cell in notebook.cells for o in cell.get('outputs', ())]
  return sum('image/png' in output.get('data', {}) for output in outputs)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_runs(path, monkeypatch):
  # The kernel is a process of its own, with one device, as a reader's is.
  monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}.')
  notebook = nbformat.read(path, as_version=4)
  for cell in notebook.cells:
    if cell.cell_type == 'code':
      cell.outputs = []
  client = nbclient.NotebookClient(
    notebook,
    timeout=_SECONDS,
    resources={'metadata': {'path': str(ROOT)}},
  )
  client.execute()
  assert any(texts(notebook))
  assert num_pictures(notebook) == PICTURES[path.stem]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_with_its_outputs_and_small(path):
  assert path.stat().st_size < _MAX_BYTES
  notebook = nbformat.read(path, as_version=4)
  code = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(cell.execution_count for cell in code)
  assert str(ROOT) not in path.read_text()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_in_colab(path):
  notebook = nbformat.read(path, as_version=4)
  badge = notebook.cells[0].source
  where = path.relative_to(ROOT).as_posix()
  assert 'colab.research.google.com/github/' in badge
  assert f'/blob/main/{where})' in badge
