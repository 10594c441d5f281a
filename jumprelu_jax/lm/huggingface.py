"""Reads and writes Hugging Face model folders.

A folder holds config.json, tokenizer.json and weights: model.safetensors, or
several files with model.safetensors.index.json. Each device's slice of a
parameter is read by itself, so no host holds a copy of the model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
import tokenizers
import xxhash

from jumprelu_jax import errors
from jumprelu_jax import seals
from jumprelu_jax import sharding
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm import hf_names
from jumprelu_jax.lm import hf_weights
from jumprelu_jax.lm import transformer
from jumprelu_jax.lm.architecture import Architecture

_CONFIG = 'config.json'
_WEIGHTS = 'model.safetensors'
_ADAPTER = 'adapter_config.json'
_TOKENIZER = 'tokenizer.json'


def resolve(path: str, revision: str = '') -> tuple[pathlib.Path, str]:
  """Returns a model's folder and its revision, downloaded if it is a hub id.

  Args:
    path: a folder, or 'owner/name' on the Hugging Face hub.
    revision: branch, tag or commit on the hub; '' is its default branch. For
      a folder it must be ''.

  Returns:
    The folder, and the commit that a hub id stands for ('' for a folder), which
    belongs in the record of a run.

  Raises:
    errors.InputError: there is no such folder, and no such model on the hub.
  """
  if os.path.isdir(path):
    if revision:
      raise errors.InputError(
        f'config.lm.revision={revision!r} is for models on the hub, but {path} '
        'is a folder; leave it empty.'
      )
    return pathlib.Path(path), ''
  is_hub_id = path.count('/') == 1 and not path.startswith(('.', '/', '~'))
  if not is_hub_id:
    raise errors.InputError(
      f'model folder {path} does not exist; give a folder with {_CONFIG}, '
      f'{_WEIGHTS} and {_TOKENIZER}, or a hub id such as google/gemma-2-2b.'
    )
  return _download(path, revision)


def load_architecture(folder: str | os.PathLike) -> Architecture:
  """Reads config.json, and whether the weights have a head of their own.

  Raises:
    errors.InputError: the folder or the file is missing or unreadable, or the
      model is not one that `transformer` computes exactly.
  """
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise errors.InputError(
      f'model folder {folder} does not exist; give a folder with {_CONFIG}, '
      f'{_WEIGHTS} and {_TOKENIZER}.'
    )
  if (folder / _ADAPTER).is_file():
    raise errors.InputError(
      f'{folder} holds an adapter ({_ADAPTER}), which changes the weights of '
      'another model; merge it into that model, and give the folder of the '
      'merged one.'
    )
  raw = hf_weights.load_json(folder / _CONFIG)
  result = hf_config.architecture(raw, f'{folder}/{_CONFIG}')
  if 'head_VD' in result.optional or not hf_weights.are_there(folder):
    return result
  with hf_weights.Weights(folder, result) as weights:
    head = {'head_VD'} if weights.has_own_head() else set()
  return dataclasses.replace(result, optional=result.optional | head)


def load_tokenizer(folder: str | os.PathLike) -> tokenizers.Tokenizer:
  """Reads tokenizer.json of a model folder: what makes ids of a text, no more.

  Such a file may also hold settings of the program that saved it, which are
  switched off: truncation and padding, a dropout of merges, and a template that
  does not take the text once. What adds special tokens stays, for those who ask
  for them.

  Raises:
    errors.InputError: the file is missing or is no tokenizer.
  """
  path = hf_weights.existing(pathlib.Path(folder) / _TOKENIZER)
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises plain Exception
    raise errors.InputError(f'{path} is not a tokenizer: {error}.') from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  # Of BPE, and of Unigram: what samples one of several segmentations.
  for name in ('dropout', 'alpha', 'nbest_size'):
    if getattr(tokenizer.model, name, None) is not None:
      setattr(tokenizer.model, name, None)
  if not _takes_text_once(json.loads(tokenizer.to_str())['post_processor']):
    tokenizer.post_processor = None
  return tokenizer


def tokenizer_digest(folder: str | os.PathLike) -> str:
  """Returns a digest of tokenizer.json, for the record of what it made."""
  content = hf_weights.existing(pathlib.Path(folder) / _TOKENIZER).read_bytes()
  return xxhash.xxh3_128_hexdigest(content)


def digests(folder: str | os.PathLike) -> dict[str, str]:
  """Returns the checksum of each file that `load` and the tokenizer read."""
  found = [
    path
    for pattern in ('*.json', '*.safetensors')
    for path in pathlib.Path(folder).glob(pattern)
  ]
  return {path.name: seals.digest(path) for path in sorted(found)}


def check_weights(
  folder: str | os.PathLike, architecture: Architecture
) -> None:
  """Checks the files' headers: every tensor there, in its shape, none unknown.

  Raises:
    errors.InputError: names the tensor, or the file that is damaged.
  """
  with hf_weights.Weights(folder, architecture) as weights:
    weights.check()


def load(
  folder: str | os.PathLike,
  *,
  dtype: str = 'float32',
  mesh: jax.sharding.Mesh | None = None,
  num_layers: int | None = None,
) -> transformer.Transformer:
  """Reads a model folder into parameters of one dtype.

  Args:
    folder: Hugging Face folder.
    dtype: of the parameters, and so of the computation.
    mesh: lays the parameters out by `sharding.RULES`; None takes one device.
    num_layers: read only this many of the first blocks.

  Raises:
    errors.InputError: as `load_architecture` and `check_weights`.
  """
  architecture = load_architecture(folder)
  with hf_weights.Weights(folder, architecture) as weights:
    weights.check()
    if num_layers is not None:
      architecture = architecture.cut(num_layers)
    model = abstract(architecture, dtype)
    where = sharding.of_tree(mesh or sharding.make_mesh(1, 1), model)

    def read(path, leaf, layout):
      name, is_stacked = path[-1].name, len(path) > 1
      fetch = functools.partial(weights.read, name, is_stacked, leaf)
      return jax.make_array_from_callback(leaf.shape, layout, fetch)

    return jax.tree_util.tree_map_with_path(read, model, where)


def abstract(
  architecture: Architecture, dtype: str = 'float32'
) -> transformer.Transformer:
  """Returns the model's shapes and dtypes without its values."""
  return jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    transformer.shapes(architecture),
    is_leaf=lambda x: isinstance(x, tuple),
  )


def save(
  model: transformer.Transformer,
  tokenizer: tokenizers.Tokenizer,
  folder: str | os.PathLike,
  dtype: str = 'bfloat16',
) -> None:
  """Writes a Gemma 2 folder that this module and `transformers` load."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  config = gemma2.config_json(model.architecture) | {
    'torch_dtype': jnp.dtype(dtype).name
  }
  (folder / _CONFIG).write_text(json.dumps(config, indent=2) + '\n')
  weights = {}
  cuts = hf_names.NAMES[model.architecture.model_type]
  for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
    name = path[-1].name
    cut, letters = cuts[name], name.rsplit('_', 1)[1]
    value = np.asarray(jnp.asarray(leaf, dtype))
    if len(path) == 1:
      weights[cut.name] = cut.write(value, letters)
      continue
    for layer, one in enumerate(value):
      weights[cut.name.format(layer)] = cut.write(one, letters)
  safetensors.numpy.save_file(
    weights, folder / _WEIGHTS, metadata={'format': 'pt'}
  )
  tokenizer.save(str(folder / _TOKENIZER))
  tokenizer_config = {
    f'{word}_token': tokenizer.id_to_token(config[f'{word}_token_id'])
    for word in ('bos', 'eos', 'pad')
  } | {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'model_max_length': model.architecture.max_positions,
  }
  (folder / 'tokenizer_config.json').write_text(
    json.dumps(tokenizer_config, indent=2) + '\n'
  )


def parameter_bytes(architecture: Architecture, dtype: str) -> int:
  """Returns the size of all parameters."""
  leaves = jax.tree.leaves(abstract(architecture, dtype))
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _takes_text_once(processor):
  """False for a template that leaves the text out, or repeats it."""
  if processor is None:
    return True
  if processor['type'] == 'Sequence':
    return all(map(_takes_text_once, processor['processors']))
  if processor['type'] != 'TemplateProcessing':
    return True
  return sum('Sequence' in piece for piece in processor['single']) == 1


def _download(repo_id, revision):
  """Downloads a model from the hub; returns its folder and its commit."""
  import huggingface_hub  # only those who name a hub id need a network

  wanted = ['*.json', '*.jinja', '*.safetensors']
  try:
    commit = huggingface_hub.model_info(repo_id, revision=revision or None).sha
    folder = huggingface_hub.snapshot_download(
      repo_id, revision=commit, allow_patterns=wanted
    )
  except Exception as error:  # the library raises many kinds, and requests'
    raise errors.InputError(
      f'model {repo_id!r} (revision {revision or "default"}) is no folder and '
      f'cannot be had from the hub: {type(error).__name__}: {error}. Check the '
      'name, the network, and for gated models HF_TOKEN.'
    ) from error
  return pathlib.Path(folder), commit
