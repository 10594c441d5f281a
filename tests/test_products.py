"""Every product of float32 arrays asks for float32, whatever the platform."""

import ast
import functools
import pathlib
import re

import jax
from jax import numpy as jnp
import numpy as np
import pytest

import jumprelu_jax
from jumprelu_jax import evaluation
from jumprelu_jax import metrics
from jumprelu_jax import products
from jumprelu_jax import sharding
from jumprelu_jax import splicing
from jumprelu_jax import train
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer
from jumprelu_jax.records import effects
from jumprelu_jax.records import encode
from jumprelu_jax.records import neighbours
from jumprelu_jax.sae import biases
from jumprelu_jax.sae import released

PACKAGE = pathlib.Path(jumprelu_jax.__file__).parent
FILES = sorted(
  path
  for folder in (PACKAGE, PACKAGE.parent / 'experiments')
  for path in folder.rglob('*.py')
)
PRODUCTS = {
  'convolve', 'conv_general_dilated', 'corrcoef', 'correlate', 'cov', 'dot',
  'dot_general', 'dot_product_attention', 'einsum', 'inner', 'matmul', 'matvec',
  'multi_dot', 'tensordot', 'vdot', 'vecdot', 'vecmat',
}  # fmt: skip
#: What may compute a product: modules, and functions whose arrays are SciPy's
#: or another library's.
LIBRARIES = {'np', 'products', 'ops', 'torch'}
NO_JAX = {('neighbours.py', 'by_firing')}


def uses_jax(tree):
  """Whether a module imports JAX, anywhere."""
  names = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names.add(node.module)
  return any(name.split('.')[0] == 'jax' for name in names)


def written_products(path):
  """Yields (line, source) of products that say nothing of their precision."""
  tree = ast.parse(path.read_text())
  if not uses_jax(tree):
    return
  exempt = {
    id(inner)
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef) and (path.name, node.name) in NO_JAX
    for inner in ast.walk(node)
  }
  for node in ast.walk(tree):
    if id(node) in exempt:
      continue
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
      yield node.lineno, ast.unparse(node)
    is_product = isinstance(node, ast.Attribute) and node.attr in PRODUCTS
    if is_product and ast.unparse(node.value) not in LIBRARIES:
      yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE.parent))
)
def test_products_are_written_in_one_place(path):
  if path.name != 'products.py':
    assert not list(written_products(path))


def precisions_in(program):
  """Returns what products of StableHLO ask for, by the wider operand."""
  found = {}
  for line in program.splitlines():
    if 'stablehlo.dot_general' in line or 'stablehlo.convolution' in line:
      precision = re.search(r'precision = \[(\w+), \w+\]', line)
      operands = re.search(r' : \((.*?)\) ->', line).group(1)
      widest = 'f32' if 'f32' in operands.replace('bf16', '') else 'bf16'
      asked = precision.group(1) if precision else 'nothing'
      found.setdefault(widest, set()).add(asked)
  return found


def precisions(fn, *args):
  """`precisions_in` of a function's program."""
  return precisions_in(jax.jit(fn).lower(*args).as_text())


PRODUCT = [
  products.matmul,
  functools.partial(products.einsum, 'ij,jk->ik'),
  functools.partial(
    products.einsum, 'ij,jk->ik', preferred_element_type='float32'
  ),
]


@pytest.mark.parametrize('product', PRODUCT)
def test_precision_follows_the_operands(product):
  f32, bf16 = jnp.ones((4, 4)), jnp.ones((4, 4), 'bfloat16')

  def both_gradients(a, b):
    return jax.grad(lambda a, b: jnp.sum(product(a, b)), (0, 1))(a, b)

  for fn in (product, both_gradients):
    assert precisions(fn, f32, f32) == {'f32': {'HIGHEST'}}
  assert precisions(product, bf16, bf16) == {'bf16': {'DEFAULT'}}
  assert precisions(product, bf16, f32) == {'f32': {'HIGHEST'}}


TOKENS = np.arange(3, 19, dtype=np.int32).reshape(2, 8)
SITE = sites.Site('resid_post', 0)


@pytest.fixture(scope='module')
def setting(tiny_lm):
  model = huggingface.load(tiny_lm)
  return evaluation.Setting(model, TOKENS, SITE, 2)


@pytest.fixture(scope='module')
def sae():
  rng = np.random.default_rng(0)
  return released.SAE(
    **{
      name: jnp.asarray(rng.uniform(size=shape), 'float32')
      for name, shape in (
        ('W_enc', (16, 24)), ('b_enc', 24), ('W_dec', (24, 16)),
        ('b_dec', 16), ('threshold', 24),
      )
    }
  )  # fmt: skip


def programs(setting, sae):
  """Returns the package's programs by name, each with its arguments."""
  model, splice = setting.model, setting.splice
  clean = splicing.run_clean(model, TOKENS, splice)
  x_ND, mesh = clean.x_ND, sharding.make_mesh(1, 1)
  norm = functools.partial(effects._extremes, is_centred=True, count=2)
  return {
    'logits': (transformer.logits, model, TOKENS),
    'clean': (
      lambda *args: splicing.run_clean(*args, splice), model, TOKENS
    ),
    'ablated': (
      lambda *args: evaluation._ablated(*args, splice), model, clean, x_ND[0]
    ),
    'spliced': (
      lambda *args: evaluation._spliced(*args, splice),
      sae, model, clean, x_ND[0], 1.0,
    ),
    'gradient': (
      lambda *args: splicing.gradient(metrics.centred_logit, *args, splice),
      model, clean,
    ),
    'importance': (evaluation._importance, sae, x_ND, x_ND),
    'records': (
      lambda *args: encode._fire(*args, SITE, 4, mesh),
      model, sae, TOKENS, TOKENS > 2,
    ),
    'effects': (norm, x_ND, x_ND[0], model.embed_VD),
    'directions': (
      lambda model, x_ND: effects.directions(
        model, sites.Site('attn_z', 0), x_ND
      ),
      model, jnp.ones((3, 12)),
    ),
    'neighbours': (
      lambda x_ND: neighbours._nearest(x_ND, x_ND, 0, 2), x_ND
    ),
    'median': (biases.geometric_median, x_ND),
  }  # fmt: skip


def test_programs_in_float32_ask_for_float32(setting, sae):
  for name, (fn, *args) in programs(setting, sae).items():
    assert precisions(fn, *args) == {'f32': {'HIGHEST'}}, name


def test_a_model_in_bfloat16_asks_for_the_default(setting):
  model = jax.tree.map(lambda p: p.astype('bfloat16'), setting.model)
  assert precisions(transformer.logits, model, TOKENS) == {'bf16': {'DEFAULT'}}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_training_step(planted_run, dtype):
  run = planted_run.with_values({'sae.compute_dtype': dtype})
  state = train.init_state(run, (8,), jax.random.key(0))
  mesh, x_BD = sharding.local_mesh(), jnp.ones((64, 8))
  _, step = train.compile_for(run, (8,), mesh)
  program = step.lower(state, x_BD, np.float32(1), train.numbers_of(run))
  found = precisions_in(program.as_text())
  assert found['f32'] == {'HIGHEST'}
  if dtype == 'bfloat16':
    assert found['bf16'] == {'DEFAULT'}
