"""Files exchanged with the packages themselves, in their own environment.

  pip install -e '.[saelens]' && pip install --no-deps -r tests/others.txt
  pytest -m others

Of nnsight, which dictionary-learning imports, nothing is used here.
"""

import json
import sys
import types

from jax import numpy as jnp
import numpy as np
import pytest

from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.exchange import formats
from jumprelu_jax.sae import released

pytestmark = pytest.mark.others

D, M = 16, 48
DETAILS = details_lib.Details(model='gpt2', site='resid_post', layer=2)
TRANSCODER = details_lib.Details(
  model='gpt2', site='mlp_in', layer=2, target_site='mlp_out', target_layer=2
)


def random(*shape, seed=0):
  values = np.random.default_rng([seed, *shape]).normal(size=shape)
  return values.astype('float32')


X_BD = random(40, D, seed=9)


def ours(kind):
  maps = {
    'W_enc': random(D, M),
    'b_enc': random(M),
    'W_dec': random(M, D),
    'b_dec': random(D, seed=1),
  }
  maps['W_dec'] /= np.linalg.norm(maps['W_dec'], axis=1, keepdims=True)
  maps = {name: jnp.asarray(array) for name, array in maps.items()}
  if 'skip' in kind:
    maps['W_skip'] = jnp.asarray(random(D, D, seed=3))
  if 'topk' in kind:
    return released.TopKSAE(**maps, k=6)
  return released.SAE(**maps, threshold=jnp.abs(random(M, seed=2)))


def written(tmp_path, kind, name):
  sae = ours(kind)
  details = TRANSCODER if 'transcoder' in kind else DETAILS
  formats.save(sae, details, tmp_path / 'ours', name)
  return sae, tmp_path / 'ours'


def assert_same(sae, encode, run):
  """Ours and theirs, functions of a torch tensor, on the same activations."""
  import torch

  x = torch.from_numpy(X_BD)
  with torch.no_grad():
    f, y_hat = encode(x).numpy(), run(x).numpy()
  np.testing.assert_array_equal(sae.encode(X_BD) > 0, f > 0)
  np.testing.assert_allclose(sae.encode(X_BD), f, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(sae(X_BD), y_hat, rtol=1e-5, atol=1e-5)


def randomised(module):
  """Gives every parameter of a torch module a random value."""
  import torch

  with torch.no_grad():
    for i, (name, value) in enumerate(module.named_parameters()):
      drawn = torch.from_numpy(0.5 * random(*value.shape, seed=20 + i))
      value.copy_(drawn.abs() if 'threshold' in name else drawn)
  return module


@pytest.mark.parametrize(
  'kind', ['jumprelu', 'topk', 'transcoder', 'skip_transcoder']
)
def test_saelens_loads_ours(tmp_path, kind):
  import sae_lens

  sae, folder = written(tmp_path, kind, 'saelens')
  theirs = sae_lens.SAE.load_from_disk(folder)
  assert_same(sae, theirs.encode, theirs)
  assert theirs.cfg.metadata.model_name == 'gpt2'


@pytest.mark.parametrize(
  'architecture',
  [
    'standard', 'jumprelu', 'topk', 'gated', 'transcoder', 'skip_transcoder',
    'jumprelu_transcoder', 'jumprelu_skip_transcoder',
  ],
)  # fmt: skip
@pytest.mark.parametrize('is_on', [False, True])
def test_ours_loads_saelens(tmp_path, architecture, is_on):
  """Its switches off and on: norms that count, b_dec that is subtracted."""
  import sae_lens
  from sae_lens import registry

  cls, config_cls = registry.get_sae_class(architecture)
  options = {'d_in': D, 'd_sae': M}
  if architecture == 'topk':
    options |= {'k': 6, 'rescale_acts_by_decoder_norm': is_on}
  if 'transcoder' in architecture:
    options |= {'d_out': D, 'apply_b_dec_to_input': False}
  else:
    options['apply_b_dec_to_input'] = is_on
  theirs = randomised(cls(config_cls(**options)))
  theirs.save_model(tmp_path / 'theirs')
  sae, _ = formats.load(tmp_path / 'theirs')
  assert isinstance(theirs, sae_lens.SAE)
  assert_same(sae, theirs.encode, theirs)


@pytest.fixture
def dictionary_learning(monkeypatch):
  """The package without nnsight, which it asks for when it is imported."""
  nnsight = types.ModuleType('nnsight')
  nnsight.LanguageModel = object
  monkeypatch.setitem(sys.modules, 'nnsight', nnsight)
  return pytest.importorskip('dictionary_learning', exc_type=ImportError)


@pytest.mark.parametrize('kind', ['jumprelu', 'topk'])
def test_dictionary_learning_loads_ours(tmp_path, dictionary_learning, kind):
  from dictionary_learning import utils

  sae, folder = written(tmp_path, kind, 'dictionary_learning')
  theirs, _ = utils.load_dictionary(str(folder), 'cpu')
  assert_same(sae, theirs.encode, theirs)


DICTIONARIES = {
  'JumpReluAutoEncoder': 'dictionary',
  'AutoEncoder': 'dictionary',
  'AutoEncoderNew': 'dictionary',
  'GatedAutoEncoder': 'dictionary',
  'AutoEncoderTopK': 'trainers.top_k',
  'BatchTopKSAE': 'trainers.batch_top_k',
  'MatryoshkaBatchTopKSAE': 'trainers.matryoshka_batch_top_k',
}


@pytest.mark.parametrize('name', DICTIONARIES)
def test_ours_loads_dictionary_learning(tmp_path, dictionary_learning, name):
  import importlib

  import torch

  module = importlib.import_module(f'dictionary_learning.{DICTIONARIES[name]}')
  options = [D, M]
  if 'TopK' in name:
    options.append(6)
  if 'Matryoshka' in name:
    options.append([16, 32])
  theirs = randomised(getattr(module, name)(*options))
  if name in ('BatchTopKSAE', 'MatryoshkaBatchTopKSAE'):
    theirs.threshold.fill_(0.8)
  folder = tmp_path / 'theirs'
  folder.mkdir()
  torch.save(theirs.state_dict(), folder / 'ae.pt')
  config = {'trainer': {'dict_class': name, 'layer': 2, 'lm_name': 'gpt2'}}
  (folder / 'config.json').write_text(json.dumps(config))
  sae, _ = formats.load(folder)
  assert_same(sae, theirs.encode, theirs)


def sparsify_functions(theirs):
  """Dense activations and outputs: theirs are values and indices."""
  import torch

  def encode(x):
    values, indices, _ = theirs.encode(x)
    return torch.zeros(len(x), M).scatter_(1, indices, values)

  return encode, lambda x: theirs(x).sae_out


@pytest.mark.parametrize('kind', ['topk', 'topk_skip_transcoder'])
def test_sparsify_loads_ours(tmp_path, kind):
  import sparsify

  sae, folder = written(tmp_path, kind, 'sparsify')
  theirs = sparsify.SparseCoder.load_from_disk(folder)
  assert_same(sae, *sparsify_functions(theirs))


@pytest.mark.parametrize('is_transcoder', [False, True])
def test_ours_loads_sparsify(tmp_path, is_transcoder):
  import sparsify

  config = sparsify.SparseCoderConfig(
    num_latents=M, k=6, transcode=is_transcoder, skip_connection=is_transcoder
  )
  theirs = randomised(sparsify.SparseCoder(D, config))
  theirs.save_to_disk(tmp_path / 'theirs')
  sae, _ = formats.load(tmp_path / 'theirs')
  assert_same(sae, *sparsify_functions(theirs))


def llamascopium_config(**values):
  from llamascopium.models import sae as models
  import torch

  return models.SAEConfig(
    d_model=D,
    expansion_factor=M / D,
    hook_point_in='blocks.2.hook_resid_post',
    hook_point_out='blocks.2.hook_resid_post',
    dtype=torch.float32,
    device='cpu',
    **values,
  )


@pytest.mark.parametrize('kind', ['jumprelu', 'topk'])
def test_llamascopium_loads_ours(tmp_path, kind):
  from llamascopium.models import sae as models

  sae, folder = written(tmp_path, kind, 'llamascopium')
  theirs = models.SparseAutoEncoder.from_pretrained(str(folder))
  assert_same(sae, theirs.encode, lambda x: theirs.decode(theirs.encode(x)))


@pytest.mark.parametrize('activation', ['relu', 'jumprelu', 'topk'])
@pytest.mark.parametrize('by_norm', [False, True])
@pytest.mark.parametrize('is_folded', [False, True])
@pytest.mark.parametrize('out', ['blocks.2.hook_resid_post', 'blocks.2.mlp'])
def test_ours_loads_llamascopium(tmp_path, activation, by_norm, is_folded, out):
  """Its activations are of inputs times a factor; ours are divided by it."""
  from llamascopium.models import sae as models
  import torch

  config = llamascopium_config(
    act_fn=activation,
    norm_activation='inference' if is_folded else 'dataset-wise',
    sparsity_include_decoder_norm=by_norm,
    top_k=6,
  )
  config.hook_point_out = out
  theirs = models.SparseAutoEncoder(config)
  randomised(theirs)
  if not is_folded:
    theirs.set_dataset_average_activation_norm(
      {config.hook_point_in: 3.7, 'blocks.2.mlp': 0.9}
    )
  folder = tmp_path / 'theirs'
  folder.mkdir()
  theirs.save_pretrained(str(folder))
  theirs.cfg.save_hyperparameters(str(folder))
  sae, _ = formats.load(folder)

  def encode_there(x):
    return theirs.encode(
      x * theirs.compute_norm_factor(x, config.hook_point_in)
    )

  into, outwards = (
    float(theirs.compute_norm_factor(torch.ones(1, D), hook))
    for hook in (config.hook_point_in, out)
  )
  # By norms k are chosen after scaling; our rows are then of unit norm.
  scale = 1 / into
  if activation == 'topk' and by_norm:
    scale = theirs.decoder_norm().detach() / outwards
  assert_same(
    sae,
    lambda x: encode_there(x) * scale,
    lambda x: theirs.decode(encode_there(x)) / outwards,
  )
