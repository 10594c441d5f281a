"""The one forward pass: taps, splices, meshes, gradients, programs."""

from helpers import families
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax import errors
from jumprelu_jax import sharding
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import sites
from jumprelu_jax.lm import transformer


def random_model(seed=0, **values):
  """A random Gemma 2 of ours with no gain at zero."""
  architecture = gemma2.architecture(**(families.GEMMA2 | values))
  model = transformer.init(architecture, jax.random.key(seed))
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return treedef.unflatten(
    x + 0.5 * jax.random.normal(key, x.shape) if x.ndim <= 2 else x
    for x, key in zip(leaves, keys, strict=True)
  )


def test_special_positions_can_be_left_as_they_are():
  model, tokens_BL = random_model(), families.tokens(2)
  where = sites.Site('resid_post', 1)
  replaced_BL = tokens_BL % 3 > 0

  @jax.jit
  def run(model, tokens_BL):
    seen = []
    hooks = sites.splice(where, lambda x: 0 * x, replaced_BL)
    hooks |= {sites.Site('resid_pre', 2): lambda x: seen.append(x) or x}
    transformer.logits(model, tokens_BL, hooks)
    return seen[0], transformer.tap(model, tokens_BL, (where,))[0]

  spliced_BLD, x_BLD = run(model, tokens_BL)
  np.testing.assert_array_equal(spliced_BLD[replaced_BL], 0)
  np.testing.assert_allclose(
    spliced_BLD[~replaced_BL], x_BLD[~replaced_BL], rtol=1e-6
  )


def test_tap_reads_no_later_block():
  model = random_model()
  where = (sites.Site('attn_z', 1),)
  tokens_BL = families.tokens()
  want = transformer.tap(model, tokens_BL, where)
  poisoned = model.replace(
    blocks=jax.tree.map(lambda p: p.at[2:].set(jnp.nan), model.blocks)
  )
  np.testing.assert_array_equal(
    transformer.tap(poisoned, tokens_BL, where), want
  )


def test_tap_of_heads_computes_no_mlp_of_its_layer():
  model, tokens_BL = random_model(), families.tokens()

  def count(name, layer):
    where = (sites.Site(name, layer),)
    compiled = jax.jit(lambda t: transformer.tap(model, t, where))
    return compiled.lower(tokens_BL).compile().cost_analysis()['flops']

  mlp = 2 * tokens_BL.size * 3 * 48 * 40
  assert count('mlp_out', 0) - count('attn_z', 0) > mlp


def test_program_does_not_grow_with_depth():
  def size(layers):
    architecture = gemma2.architecture(
      **(families.GEMMA2 | {'num_hidden_layers': layers})
    )
    model = huggingface.abstract(architecture)
    where = (sites.Site('resid_post', layers - 1),)
    tokens = jax.ShapeDtypeStruct((2, families.LENGTH), 'int32')
    lowered = jax.jit(lambda m, t: transformer.tap(m, t, where)).lower(
      model, tokens
    )
    return len(lowered.as_text().splitlines())

  assert size(40) <= 1.02 * size(4)


@pytest.mark.parametrize('shape', [(2, 4), (1, 8), (8, 1)], ids=str)
def test_sharded_model_gives_the_same_logits(shape, tmp_path):
  reference = families.make('gemma3')
  reference.save_pretrained(tmp_path)
  mesh = sharding.make_mesh(*shape)
  model = huggingface.load(tmp_path, mesh=mesh)
  tokens_BL = np.concatenate([families.tokens(s) for s in range(4)])
  tokens = jax.device_put(tokens_BL, sharding.of_batch(mesh))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(transformer.logits)(model, tokens)
    want = transformer.logits(huggingface.load(tmp_path), tokens_BL)
  families.assert_close(got, np.asarray(want))
  spec = model.blocks.W_down_FD.sharding.spec
  assert spec[1] == 'latent'  # 40 is a multiple of 1, 4 and 8


def test_later_token_changes_no_earlier_logit():
  model, tokens_BL = random_model(), families.tokens(2)
  changed_BL = tokens_BL.copy()
  changed_BL[:, 90] = np.where(tokens_BL[:, 90] == 3, 4, 3)
  before = transformer.logits(model, tokens_BL)
  after = transformer.logits(model, changed_BL)
  np.testing.assert_allclose(after[:, :90], before[:, :90], rtol=0, atol=1e-6)
  # The global layer carries the change to every later position.
  assert (np.abs(after - before)[:, 90:].max(-1) > 1e-5).all()


def test_gradient_flows_through_loops_and_hooks():
  # Finite differences of the loss along one direction of the residual stream.
  model, tokens_BL = random_model(), families.tokens(3, 20)
  where = sites.Site('resid_pre', 1)
  direction = jax.random.normal(jax.random.key(0), (48,))

  @jax.jit
  def loss(t):
    hooks = sites.splice(where, lambda x: x + t * direction[None, None])
    return jnp.sum(jnp.sin(transformer.logits(model, tokens_BL, hooks)))

  with jax.default_matmul_precision('highest'):
    difference = (loss(1e-2) - loss(-1e-2)) / 2e-2
    gradient = jax.jit(jax.grad(loss))(0.0)
    np.testing.assert_allclose(gradient, difference, rtol=2e-2)


@pytest.mark.parametrize(
  ('text', 'match'),
  [
    ('resid_post', 'form name/layer'),
    ('resid_post/-1', 'form name/layer'),
    ('residual/3', 'known sites: resid_pre, attn_z'),
  ],
)
def test_malformed_site_is_one_clear_error(text, match):
  with pytest.raises(errors.InputError, match=match):
    sites.parse(text)


def test_site_is_parsed():
  assert sites.parse('attn_z/12') == sites.Site('attn_z', 12)
