"""Data flows one way: a file imports only from the layers below its own."""

import ast
import pathlib

import pytest

import jumprelu_jax

PACKAGE = pathlib.Path(jumprelu_jax.__file__).parent
LAYERS = (
  {
    'errors', 'shapes', 'progress', 'writer', 'embedded', 'kernels', 'whole',
    'hosts', 'preemption', 'lock', 'seals', 'curve', 'json_files',
    'config_history', 'products', 'seeds',
  },
  {'results', 'finished', 'comparison'},
  {
    'config', 'config_checks', 'text', 'ops', 'selection', 'metrics', 'sparse',
    'top',
  },
  {'sharding', 'sae', 'health', 'optim', 'identity', 'checkpoint', 'lm'},
  {
    'objectives', 'components', 'architectures', 'export', 'activations',
    'splicing', 'fused', 'space', 'run_folder', 'corpus',
  },
  {
    'train', 'together', 'members', 'monitor', 'loop', 'evaluation', 'records',
    'exchange',
  },
  {
    'plot', 'inputs', 'needs', 'sweeps', 'supply', 'sae_folders', 'runs', 'api',
    'random_sae',
  },
  {'autointerp', 'ratings'},
)  # fmt: skip
LAYER = {name: i for i, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob('*.py'))
TEXT_LIBRARIES = {'datasets', 'transformers', 'tokenizers', 'safetensors'}
# Only these know Hugging Face's libraries (some only name a type).
MAY_KNOW_THEM = {
  'sources.py',
  'tokens.py',
  'pieces.py',
  'long_text.py',
  'huggingface.py',
  'hf_weights.py',
  'inputs.py',
  'lm.py',
  'untrusted.py',
  'weights.py',
}


def imported(path):
  """Yields (module, name) of every import statement in a file."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((alias.name, '') for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from ((node.module, alias.name) for alias in node.names)


def part(path):
  """Returns the layer's name of a file: its module, or its folder."""
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
  if part(path) == '__init__':
    return  # the public names, from every layer
  for module, name in imported(path):
    if module.split('.')[0] != 'jumprelu_jax':
      continue
    target = (f'{module}.{name}').split('.')[1]
    is_inside = target == part(path) and path.parent != PACKAGE
    assert is_inside or LAYER[target] <= LAYER[part(path)], f'{module} {name}'
    assert is_inside or target != part(path)


def test_layers_have_no_cycle():
  needs = {name: set() for name in LAYER}
  for path in FILES:
    if part(path) in LAYER:
      needs[part(path)] |= {
        f'{module}.{name}'.split('.')[1]
        for module, name in imported(path)
        if module.split('.')[0] == 'jumprelu_jax'
      } - {part(path)}
  done = set()
  while len(done) < len(needs):
    ready = {n for n in needs if n not in done and needs[n] <= done}
    assert ready, f'cycle among {sorted(needs.keys() - done)}'
    done |= ready


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_text_libraries_stay_in_their_files(path):
  roots = {module.split('.')[0] for module, _ in imported(path)}
  assert path.name in MAY_KNOW_THEM or not roots & TEXT_LIBRARIES
  assert not roots & {'torch', 'configs', 'experiments', 'ml_collections'}
