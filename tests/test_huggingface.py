"""Model folders: what is saved loads, here and in transformers."""

import json
import sys
import types

from helpers import families
import jax
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
import transformers

from jumprelu_jax import embedded
from jumprelu_jax import sharding
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import hf_names
from jumprelu_jax.lm import hf_weights
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import transformer

WORDS = ['<pad>', '<eos>', '<bos>', 'cat', 'dog', 'eats', 'sleeps']
CONFIG = gemma2.architecture(
  vocab_size=len(WORDS),
  hidden_size=12,
  intermediate_size=10,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=4,
  max_position_embeddings=16,
  sliding_window=3,
  query_pre_attn_scalar=3,
  rope_theta=100.0,
  rms_norm_eps=1e-2,
  attn_logit_softcapping=2.0,
  final_logit_softcapping=3.0,
)
TOKENS_BL = np.asarray([[2, 3, 5, 4, 6, 3, 4, 5]])


@pytest.fixture
def model():
  """A random model, its gains too: zeros look alike."""
  model = transformer.init(CONFIG, jax.random.key(0))
  leaves, treedef = jax.tree.flatten(model)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  return treedef.unflatten(
    x + 0.5 * jax.random.normal(key, x.shape)
    for x, key in zip(leaves, keys, strict=True)
  )


@pytest.fixture
def tokenizer():
  vocab = {word: i for i, word in enumerate(WORDS)}
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token='<pad>')
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.add_special_tokens(WORDS[:3])
  return tokenizer


@pytest.fixture
def folder(model, tokenizer, tmp_path):
  huggingface.save(model, tokenizer, tmp_path / 'lm', dtype='float32')
  return tmp_path / 'lm'


def load_all(folder):
  """Reads everything that a folder holds."""
  return huggingface.load(folder), huggingface.load_tokenizer(folder)


def change_config(folder, changes, without=()):
  path = folder / 'config.json'
  raw = json.loads(path.read_text()) | changes
  for key in without:
    del raw[key]
  path.write_text(json.dumps(raw))


def change_weights(folder, change):
  path = folder / 'model.safetensors'
  weights = safetensors.numpy.load_file(path)
  change(weights)
  safetensors.numpy.save_file(weights, path)


def truncate(folder, keep):
  path = folder / 'model.safetensors'
  blob = path.read_bytes()
  path.write_bytes(blob[: int(keep * len(blob))])


def assert_trees_equal(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)  # config too
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x.astype('float32'), y.astype('float32'))


def test_float32_folder_loads_bit_for_bit(folder, model, tokenizer):
  got_model, got_tokenizer = load_all(folder)
  assert_trees_equal(got_model, model)
  assert got_tokenizer.to_str() == tokenizer.to_str()


def test_folder_is_saved_in_bfloat16_unless_told(model, tokenizer, tmp_path):
  huggingface.save(model, tokenizer, tmp_path)
  rounded = jax.tree.map(lambda x: x.astype('bfloat16'), model)
  assert_trees_equal(huggingface.load(tmp_path, dtype='bfloat16'), rounded)
  widened = jax.tree.map(lambda x: x.astype('float32'), rounded)
  assert_trees_equal(huggingface.load(tmp_path), widened)


def test_transformers_loads_our_folder_and_gives_our_logits(folder, model):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
    folder,
    attn_implementation='eager',
    dtype=torch.float32,
    output_loading_info=True,
  )
  assert type(theirs).__name__ == 'Gemma2ForCausalLM'
  assert not any(info.values()), info
  with torch.no_grad():
    want = theirs(torch.from_numpy(TOKENS_BL)).logits.numpy()
  with jax.default_matmul_precision('highest'):
    got = transformer.logits(model, TOKENS_BL)
  # Relative to the largest value: a small logit is a difference of large ones.
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * abs(want).max())


def test_transformers_reads_the_shipped_config():
  config = transformers.AutoConfig.from_pretrained(embedded.LM)
  assert (config.model_type, config.query_pre_attn_scalar) == ('gemma2', 32)


@pytest.mark.parametrize(
  'change',
  [
    {'query_pre_attn_scalar': 3.5},
    {'attention_bias': True},
    {'layer_types': ['full_attention', 'sliding_attention']},
    {'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}},
  ],
  ids=lambda value: next(iter(value)),
)
def test_what_a_config_cannot_say_is_not_written(change):
  values = gemma2.config_json(CONFIG)
  other = hf_config.architecture(values | change, 'values')
  with pytest.raises(ValueError, match='would describe another model'):
    gemma2.config_json(other)


@pytest.mark.parametrize(
  'name', ['AutoTokenizer', 'PreTrainedTokenizerFast'], ids=str
)
def test_transformers_loads_our_tokenizer(folder, name):
  transformers = pytest.importorskip('transformers')
  theirs = getattr(transformers, name).from_pretrained(folder)
  assert theirs('cat eats dog').input_ids == [3, 5, 4]
  assert theirs.decode([3, 6]) == 'cat sleeps'
  special = theirs.pad_token_id, theirs.eos_token_id, theirs.bos_token_id
  assert special == (0, 1, 2)
  assert theirs.model_max_length == CONFIG.max_positions


@pytest.mark.parametrize(
  'spelling',
  [
    {'rope_parameters': {'rope_type': 'default', 'rope_theta': 77.0}},
    {'rope_theta': 77.0},
    {'rope_theta': 77.0, 'rope_scaling': None},
  ],
  ids=['transformers_5', 'transformers_4', 'transformers_4_null_scaling'],
)
def test_rope_theta_is_read_in_both_spellings(folder, spelling):
  change_config(folder, {}, without=['rope_theta'])
  change_config(folder, spelling)
  assert huggingface.load_architecture(folder).ropes[0].theta == 77.0


def test_rope_theta_defaults_as_in_transformers(folder):
  change_config(folder, {}, without=['rope_theta'])
  assert huggingface.load_architecture(folder).ropes[0].theta == 10_000.0


def test_missing_folder_is_one_clear_error(tmp_path):
  with pytest.raises(ValueError, match='does not exist; give a folder with'):
    huggingface.load(tmp_path / 'nowhere')


@pytest.mark.parametrize(
  'name', ['config.json', 'model.safetensors', 'tokenizer.json'], ids=str
)
def test_missing_file_is_one_clear_error(folder, name):
  (folder / name).unlink()
  with pytest.raises(ValueError, match=f'{name} does not exist; a model fold'):
    load_all(folder)


@pytest.mark.parametrize('keep', [0, 0.001, 0.3, 0.99], ids=str)
def test_truncated_weights_are_one_clear_error(folder, keep):
  truncate(folder, keep)
  with pytest.raises(ValueError, match='truncated .* get the file again'):
    huggingface.load(folder)


@pytest.mark.parametrize(
  'blob',
  [b'{"model_type": "gemma2",', b'\xff\xfe\x00', b'', b'[1, 2]', b'null'],
  ids=['cut', 'binary', 'empty', 'list', 'null'],
)
def test_garbage_config_is_one_clear_error(folder, blob):
  (folder / 'config.json').write_bytes(blob)
  with pytest.raises(ValueError, match='config.json is not '):
    huggingface.load(folder)


def test_garbage_tokenizer_is_one_clear_error(folder):
  (folder / 'tokenizer.json').write_text('{"version": "1.0"}')
  with pytest.raises(ValueError, match='tokenizer.json is not a tokenizer'):
    huggingface.load_tokenizer(folder)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'model_type': 'mamba'}, "model_type='mamba'.*gemma2, .*gpt2, .*qwen3"),
    ({'hidden_activation': 'tanh'}, "'tanh'.*one of gelu, .*silu"),
    ({'attention_bias': True}, 'lacks tensor .*q_proj.bias'),
    ({'tie_word_embeddings': False}, 'lacks tensor lm_head.weight'),
    (
      {'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}},
      "RoPE type 'yarn'.*expected default, linear or llama3",
    ),
    ({'rope_scaling': {'type': 'dynamic'}}, "RoPE type 'dynamic'"),
    ({'rope_scaling': {'type': 'linear'}}, 'rope_scaling lacks factor'),
    ({'layer_types': ['full_attention'] * 3}, 'expected 2 of full_attention'),
    ({'layer_types': ['full_attention', 'chunked']}, 'layer_types=.*chunked'),
    (
      {'use_bidirectional_attention': True},
      'use_bidirectional_attention=True.*expected False',
    ),
    ({'sliding_window': None}, 'lacks sliding_window'),
    ({'eos_token_id': [1, 'x']}, r"token ids \[2, 1, 'x', 0\].*integers"),
    ({'rms_norm_eps': 'tiny'}, "rms_norm_eps='tiny'.*expected type float"),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_unsupported_config_is_one_clear_error(folder, changes, match):
  change_config(folder, changes)
  with pytest.raises(ValueError, match=match):
    huggingface.load(folder)


@pytest.mark.parametrize(
  'changes',
  [
    {'layer_types': ['sliding_attention', 'full_attention']},
    {'use_bidirectional_attention': None},
    {'attn_logit_softcapping': None},
    {'query_pre_attn_scalar': 3.0},
  ],
  ids=lambda value: next(iter(value)),
)
def test_config_of_what_is_computed_loads(folder, changes):
  change_config(folder, changes)
  huggingface.load(folder)


def test_missing_config_key_is_named(folder):
  change_config(folder, {}, without=['vocab_size'])
  with pytest.raises(ValueError, match='lacks vocab_size'):
    huggingface.load(folder)


def test_missing_tensor_is_named(folder):
  name = 'model.layers.1.mlp.up_proj.weight'
  change_weights(folder, lambda weights: weights.pop(name))
  with pytest.raises(ValueError, match=f'lacks tensor {name}'):
    huggingface.load(folder)


def test_wrong_shape_is_named(folder):
  def transpose(weights):
    name = 'model.layers.0.self_attn.q_proj.weight'
    weights[name] = np.ascontiguousarray(weights[name].T)

  change_weights(folder, transpose)
  match = r'q_proj.weight has shape \(12, 16\), expected \(16, 12\) from config'
  with pytest.raises(ValueError, match=match):
    huggingface.load(folder)


def split_weights(folder):
  """Makes of the one file two and an index, as large models are stored."""
  weights = safetensors.numpy.load_file(folder / 'model.safetensors')
  names = sorted(weights)
  index = {}
  for i, some in enumerate((names[::2], names[1::2])):
    file = f'model-0000{i + 1}-of-00002.safetensors'
    safetensors.numpy.save_file({n: weights[n] for n in some}, folder / file)
    index |= dict.fromkeys(some, file)
  (folder / 'model.safetensors').unlink()
  path = folder / 'model.safetensors.index.json'
  path.write_text(json.dumps({'weight_map': index}))
  return path


def test_weights_in_several_files_load_the_same(folder, model):
  split_weights(folder)
  assert_trees_equal(huggingface.load(folder), model)


def test_index_that_leads_out_of_the_folder_is_refused(folder):
  path = split_weights(folder)
  path.write_text(json.dumps({'weight_map': {'a': '../secret.safetensors'}}))
  with pytest.raises(ValueError, match='not the name of a file beside it'):
    huggingface.load(folder)


def test_missing_file_of_several_is_named(folder):
  split_weights(folder)
  (folder / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(ValueError, match='00002-of-00002.safetensors does not'):
    huggingface.load(folder)


def test_tensor_that_is_not_used_is_named(folder):
  extra = {'model.layers.0.self_attn.sinks': np.zeros(4, np.float32)}
  change_weights(folder, lambda weights: weights.update(extra))
  with pytest.raises(ValueError, match='1 tensors are not part .*attn.sinks'):
    huggingface.load(folder)


def test_tensor_that_is_computed_is_ignored(folder, model):
  name = 'model.layers.1.self_attn.rotary_emb.inv_freq'
  extra = {name: np.zeros(4, np.float32)}
  change_weights(folder, lambda weights: weights.update(extra))
  assert_trees_equal(huggingface.load(folder), model)


def test_head_that_is_the_embedding_is_ignored(folder, model):
  def repeat(weights):
    weights['lm_head.weight'] = weights['model.embed_tokens.weight'].copy()

  change_weights(folder, repeat)
  assert_trees_equal(huggingface.load(folder), model)


def test_head_of_another_shape_is_named(folder):
  extra = {'lm_head.weight': np.zeros(4, np.float32)}
  change_weights(folder, lambda weights: weights.update(extra))
  with pytest.raises(ValueError, match=r'lm_head.weight has shape \(4,\), exp'):
    huggingface.load(folder)


def test_first_layers_can_be_loaded_alone(folder, model):
  cut = huggingface.load(folder, num_layers=1)
  assert cut.architecture.num_layers == 1
  np.testing.assert_array_equal(cut.blocks.W_q_DHK, model.blocks.W_q_DHK[:1])


@pytest.mark.parametrize('case', ['llama2', 'gpt_neox', 'gpt2'])
def test_each_device_reads_only_its_slices(case, tmp_path, monkeypatch):
  families.make(case).save_pretrained(tmp_path)
  whole = huggingface.load(tmp_path)
  read = []
  plain = hf_weights.Weights.read

  def record(self, name, is_stacked, leaf, index):
    value = plain(self, name, is_stacked, leaf, index)
    read.append((name, value.size))
    return value

  sliced = hf_names.Cut.read
  largest = {}

  def watch(self, read_slice, letters, index, sizes):
    def measured(bounds):
      part = read_slice(bounds)
      largest[letters] = max(largest.get(letters, 0), part.size)
      return part

    return sliced(self, measured, letters, index, sizes)

  monkeypatch.setattr(hf_weights.Weights, 'read', record)
  monkeypatch.setattr(hf_names.Cut, 'read', watch)
  model = huggingface.load(tmp_path, mesh=sharding.make_mesh(1, 4))
  assert_trees_equal(model, whole)
  # A quarter of the MLP, and of the heads: a fused tensor is read for its own
  # heads only, all three components of them at most.
  assert largest['FD'] == 48 * 40 // 4
  heads = 2 if case == 'llama2' else 4
  assert largest['DGK'] <= 3 * 48 * 12 * (heads // 4 or heads)
  assert sum(size for name, size in read if name == 'W_down_FD') == (
    whole.blocks.W_down_FD.size
  )


def test_multimodal_gemma_is_read_for_its_language_model(tmp_path):
  reference = families.make('gemma3')
  reference.save_pretrained(tmp_path)
  want = huggingface.load(tmp_path)
  path = tmp_path / 'config.json'
  inner = json.loads(path.read_text())
  path.write_text(json.dumps({'model_type': 'gemma3', 'text_config': inner}))

  def rename(weights):
    for name in list(weights):
      weights[f'language_model.{name}'] = weights.pop(name)
    weights['vision_tower.x'] = np.zeros(3, np.float32)
    weights['multi_modal_projector.y'] = np.zeros(3, np.float32)

  change_weights(tmp_path, rename)
  got = huggingface.load(tmp_path)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(x, y)


class FakeHub:
  """Stands for huggingface_hub, which no test may reach."""

  def __init__(self, folder):
    self.folder, self.asked = folder, []

  def model_info(self, repo_id, revision=None):
    self.asked.append(('info', repo_id, revision))
    return types.SimpleNamespace(sha='c0ffee')

  def snapshot_download(self, repo_id, revision, allow_patterns):
    self.asked.append(('download', repo_id, revision, allow_patterns))
    return str(self.folder)


def test_hub_id_is_downloaded_at_a_pinned_commit(folder, monkeypatch):
  hub = FakeHub(folder)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  found = huggingface.resolve('owner/name', 'main')
  assert found == (folder, 'c0ffee')
  assert hub.asked == [
    ('info', 'owner/name', 'main'),
    (
      'download',
      'owner/name',
      'c0ffee',
      ['*.json', '*.jinja', '*.safetensors'],
    ),
  ]


def test_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
  class Unreachable(FakeHub):
    def model_info(self, repo_id, revision=None):
      raise OSError('no route to host')

  monkeypatch.setitem(sys.modules, 'huggingface_hub', Unreachable(''))
  with pytest.raises(ValueError, match="'owner/name'.*no route.*HF_TOKEN"):
    huggingface.resolve('owner/name')


def test_revision_of_a_folder_is_refused(folder):
  assert huggingface.resolve(str(folder)) == (folder, '')
  with pytest.raises(ValueError, match='leave it empty'):
    huggingface.resolve(str(folder), 'main')


@pytest.mark.parametrize('path', ['./no/such', '/no/such', 'no/such/folder'])
def test_path_that_is_no_hub_id_is_not_asked_for(path):
  with pytest.raises(ValueError, match='does not exist; give a folder'):
    huggingface.resolve(path)
