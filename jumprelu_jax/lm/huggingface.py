"""Reads and writes Hugging Face model folders.

A folder holds config.json, model.safetensors and tokenizer.json. Only this file
knows their names for things.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers

from jumprelu_jax import errors
from jumprelu_jax.lm import gemma2

# Our field of a block → Hugging Face's name and whether it is transposed
# (torch's Linear stores [out, in], we store [in, out]).
_BLOCK_NAMES = {
  'pre_attn_norm_D': ('input_layernorm', False),
  'W_q_DP': ('self_attn.q_proj', True),
  'W_k_DQ': ('self_attn.k_proj', True),
  'W_v_DQ': ('self_attn.v_proj', True),
  'W_o_PD': ('self_attn.o_proj', True),
  'post_attn_norm_D': ('post_attention_layernorm', False),
  'pre_mlp_norm_D': ('pre_feedforward_layernorm', False),
  'W_gate_DF': ('mlp.gate_proj', True),
  'W_up_DF': ('mlp.up_proj', True),
  'W_down_FD': ('mlp.down_proj', True),
  'post_mlp_norm_D': ('post_feedforward_layernorm', False),
}
# Annotation of a config field → the types of a value that fits it.
_KINDS = {
  'int': int,
  'float': (int, float),
  'float | None': (int, float, type(None)),
}
_EMBED = 'model.embed_tokens.weight'
_FINAL_NORM = 'model.norm.weight'


def load_config(folder: str | os.PathLike) -> gemma2.Gemma2Config:
  """Reads config.json of a Gemma 2 folder.

  Raises:
    errors.InputError: the folder or a file is missing or unreadable, or the
      model is not one that `gemma2` computes exactly.
  """
  raw = _load_json(pathlib.Path(folder), 'config.json')
  where = f'{folder}/config.json'
  _require(raw, where, 'model_type', 'gemma2')
  activation = raw.get('hidden_activation') or raw.get('hidden_act')
  if activation != 'gelu_pytorch_tanh':
    raise errors.InputError(
      f'{where}: activation {activation!r} is not supported; expected '
      "'gelu_pytorch_tanh'."
    )
  _require(raw, where, 'attention_bias', False, absent_ok=True)
  _require(raw, where, 'tie_word_embeddings', True, absent_ok=True)
  if raw.get('use_bidirectional_attention') is not None:  # null is causal
    _require(raw, where, 'use_bidirectional_attention', False)
  # transformers 5 keeps RoPE under `rope_parameters`, transformers 4 in the
  # config itself with `rope_scaling` beside it.
  rope = raw.get('rope_parameters') or raw.get('rope_scaling') or {}
  rope_type = rope.get('rope_type', rope.get('type', 'default'))
  if rope_type != 'default':
    raise errors.InputError(
      f"{where}: RoPE type {rope_type!r} is not supported; expected 'default'."
    )
  values = dict(raw)
  values['rope_theta'] = rope.get(
    'rope_theta', raw.get('rope_theta', gemma2.Gemma2Config.rope_theta)
  )
  fields = dataclasses.fields(gemma2.Gemma2Config)
  required = {f.name for f in fields if f.default is dataclasses.MISSING}
  missing = sorted(required - values.keys())
  if missing:
    raise errors.InputError(f'{where} lacks {", ".join(missing)}.')
  config = gemma2.Gemma2Config(
    **{f.name: values[f.name] for f in fields if f.name in values}
  )
  for field in fields:
    value = getattr(config, field.name)
    if not isinstance(value, _KINDS[field.type]):
      raise errors.InputError(
        f'{where}: {field.name}={value!r} is not supported; expected type '
        f'{field.type}.'
      )
  layer_types = [
    'sliding_attention' if config.is_sliding(layer) else 'full_attention'
    for layer in range(config.num_hidden_layers)
  ]
  _require(raw, where, 'layer_types', layer_types, absent_ok=True)
  return config


def load_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer:
  """Reads tokenizer.json of a model folder; InputError if it cannot."""
  path = pathlib.Path(folder) / 'tokenizer.json'
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; a model folder needs one.')
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises plain Exception
    raise errors.InputError(f'{path} is not a tokenizer: {error}.') from error


def check_weights(
  folder: str | os.PathLike, config: gemma2.Gemma2Config
) -> None:
  """Raises InputError unless the header lists each tensor in its shape."""
  expected = {name: shape for _, name, shape, _ in _tensors(abstract(config))}
  with _open_weights(folder) as file:
    names = set(file.keys())
    for name, shape in expected.items():
      if name not in names:
        raise errors.InputError(
          f'{folder}/model.safetensors lacks tensor {name}.'
        )
      got = tuple(file.get_slice(name).get_shape())
      if got != shape:
        raise errors.InputError(
          f'{folder}/model.safetensors: {name} has shape {got}, expected '
          f'{shape} from config.json.'
        )


def load(
  folder: str | os.PathLike, dtype: jnp.dtype = jnp.float32
) -> gemma2.Gemma2:
  """Reads a Gemma 2 folder into parameters of one dtype.

  Raises:
    errors.InputError: as `load_config` and `check_weights`.
  """
  config = load_config(folder)
  check_weights(folder, config)
  model = abstract(config)
  leaves = []
  with _open_weights(folder) as file:
    for _, name, _, is_transposed in _tensors(model):
      value = file.get_tensor(name)
      leaves.append(jnp.asarray(value.T if is_transposed else value, dtype))
  return jax.tree.unflatten(jax.tree.structure(model), leaves)


def save(
  model: gemma2.Gemma2,
  tokenizer: tokenizers.Tokenizer,
  folder: str | os.PathLike,
  dtype: jnp.dtype = jnp.bfloat16,
) -> None:
  """Writes a folder that this module and `transformers` load."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config = dataclasses.asdict(model.config) | {
    'architectures': ['Gemma2ForCausalLM'],
    'model_type': 'gemma2',
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'tie_word_embeddings': True,
    'torch_dtype': jnp.dtype(dtype).name,
  }
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  weights = {}
  for leaf, name, _, is_transposed in _tensors(model):
    value = np.asarray(jnp.asarray(leaf, dtype))
    weights[name] = np.ascontiguousarray(value.T if is_transposed else value)
  safetensors.numpy.save_file(
    weights, folder / 'model.safetensors', metadata={'format': 'pt'}
  )
  tokenizer.save(str(folder / 'tokenizer.json'))
  special = {
    f'{word}_token': tokenizer.id_to_token(
      getattr(model.config, f'{word}_token_id')
    )
    for word in ('bos', 'eos', 'pad')
  }
  tokenizer_config = special | {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': model.config.max_position_embeddings,
  }
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(tokenizer_config, indent=2) + '\n'
  )


def abstract(config: gemma2.Gemma2Config) -> gemma2.Gemma2:
  """Returns the model's shapes and dtypes without its values."""
  return jax.eval_shape(lambda: gemma2.init(config, jax.random.key(0)))


def _tensors(model):
  """Yields (leaf, name, file's shape, is_transposed) in pytree order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(model)
  for path, leaf in leaves:
    name, is_transposed = _name_in_file(path)
    shape = leaf.shape[::-1] if is_transposed else leaf.shape
    yield leaf, name, shape, is_transposed


def _name_in_file(path):
  """Maps a leaf's path in `Gemma2` to its tensor's name and transposition."""
  if path[0].name == 'embed_VD':
    return _EMBED, False
  if path[0].name == 'final_norm_D':
    return _FINAL_NORM, False
  _, layer, field = path
  name, is_transposed = _BLOCK_NAMES[field.name]
  return f'model.layers.{layer.idx}.{name}.weight', is_transposed


def _open_weights(folder):
  """Opens model.safetensors; one clear InputError when it is no good."""
  path = pathlib.Path(folder) / 'model.safetensors'
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; a model folder needs one.')
  try:
    return safetensors.safe_open(path, framework='np')
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.InputError(
      f'{path} is damaged or truncated ({error}); get the file again.'
    ) from error


def _load_json(folder, name):
  """Reads one JSON object of a model folder."""
  if not folder.is_dir():
    raise errors.InputError(
      f'model folder {folder} does not exist; give a folder with '
      'config.json, model.safetensors and tokenizer.json.'
    )
  path = folder / name
  if not path.is_file():
    raise errors.InputError(f'{path} does not exist; a model folder needs one.')
  try:
    raw = json.loads(path.read_text())
  except ValueError as error:
    raise errors.InputError(f'{path} is not JSON ({error}).') from error
  if not isinstance(raw, dict):
    raise errors.InputError(f'{path} is not a JSON object.')
  return raw


def _require(raw, where, key, expected, *, absent_ok=False):
  """Raises InputError unless raw[key] is as this code computes it."""
  if key not in raw and absent_ok:
    return
  if raw.get(key) != expected:
    raise errors.InputError(
      f'{where}: {key}={raw.get(key)!r} is not supported; expected '
      f'{expected!r}.'
    )
