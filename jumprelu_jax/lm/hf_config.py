"""config.json → Architecture: one function for each of Hugging Face's families.

Every key is read, known to change no logit (`hf_classes`) or refused by name; a
key that is absent has the default of transformers' class. Both spellings are
read: transformers 5 keeps RoPE under `rope_parameters`, transformers 4 in
`rope_theta` and `rope_scaling` (GPT-NeoX: `rotary_emb_base`, `rotary_pct`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from jumprelu_jax import errors
from jumprelu_jax.lm import hf_classes
from jumprelu_jax.lm import hf_raw
from jumprelu_jax.lm.architecture import Architecture

_POST_NORMS = frozenset({'post_attn_norm_D', 'post_mlp_norm_D'})
_QK_NORMS = frozenset({'q_norm_K', 'k_norm_K'})
_QKV_BIASES = frozenset({'b_q_HK', 'b_k_GK', 'b_v_GK'})
_GATE = frozenset({'W_gate_DF'})
_HEAD = frozenset({'head_VD'})
_LAYER_NORM_BIASES = frozenset(
  {'attn_norm_bias_D', 'mlp_norm_bias_D', 'final_norm_bias_D'}
)


def architecture(values: Mapping[str, Any], where: str) -> Architecture:
  """Returns the architecture that a config.json describes.

  Args:
    values: the file's object.
    where: the file, for errors.

  Raises:
    errors.InputError: the family, or something that it computes, is not ours;
      or a key is not known.
  """
  model_type = values.get('model_type')
  if model_type == 'gemma3':
    return _gemma3(hf_raw.Raw(values, where))
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise errors.InputError(
      f'{where}: model_type={model_type!r} is not supported; expected one of '
      f'{", ".join(FAMILIES)}, gemma3.'
    )
  raw = hf_raw.Raw(values, where, hf_classes.DEFAULTS[model_type])
  _check_common(raw)
  result = FAMILIES[model_type](raw)
  result = dataclasses.replace(result, **_token_ids(raw, result.vocab_size))
  raw.refuse_others(
    hf_classes.IDLE | hf_classes.IDLE_IN.get(model_type, frozenset())
  )
  if result.num_heads % result.num_kv_heads:
    raise errors.InputError(
      f'{where}: {result.num_heads} attention heads are not a multiple of '
      f'{result.num_kv_heads} key/value heads.'
    )
  return result


def _check_common(raw):
  """Refuses what makes another model of any family."""
  if raw.values.get('quantization_config') is not None:
    raise errors.InputError(
      f'{raw.where}: quantization_config says that the weights are quantised, '
      'which are not read; give the folder of the model in bfloat16, float16 '
      'or float32.'
    )
  if raw.values.get('auto_map') is not None:
    raise errors.InputError(
      f'{raw.where}: auto_map says that code of its own computes this model; '
      "remove the key if the weights are those of the library's own class."
    )
  for key, value in hf_classes.ONLY.items():
    raw.require(key, value)
  # null, too, takes the causal mask away there.
  if raw.values.get('is_causal', True) is not True:
    raise errors.InputError(
      f'{raw.where}: is_causal={raw.values["is_causal"]!r} is not supported; '
      'expected true.'
    )
  raw.read.add('is_causal')


def _token_ids(raw, vocab_size):
  """Returns bos_id, pad_id and special_ids; eos_token_id may be a list.

  Ids beyond the vocabulary are in no text. Files have them, as -1 for none, and
  so have classes whose default is another vocabulary's.
  """
  said = {}
  for key in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
    raw.read.add(key)
    value = raw.values.get(key, raw.defaults.get(key))
    said[key] = value if isinstance(value, list) else [value]
  ids = [i for group in said.values() for i in group if i is not None]
  if not all(type(i) is int for i in ids):
    raise errors.InputError(
      f'{raw.where}: token ids {ids} are not supported; expected integers.'
    )
  bos, eos, pad = (
    [i for i in group if i is not None and 0 <= i < vocab_size]
    for group in said.values()
  )
  # Padding sits behind the text, where a causal model does not see it: any
  # special token will do.
  return {
    'bos_id': bos[0] if bos else None,
    'pad_id': next(iter((*pad, *eos, *bos)), 0),
    'special_ids': tuple(dict.fromkeys((*bos, *eos, *pad))),
  }


def _sizes(raw):
  """Returns what families with Llama's key names share."""
  d_model = raw.size('hidden_size')
  num_heads = raw.size('num_attention_heads')
  num_kv_heads = raw.get_or_none('num_key_value_heads', int)
  # Llama's alone may be null.
  is_llama = raw.values['model_type'] == 'llama'
  read = raw.get_or_none if is_llama else raw.get
  head_dim = read('head_dim', int, d_model // num_heads)
  sizes = {
    'vocab_size': raw.size('vocab_size'),
    'd_model': d_model,
    'd_mlp': raw.size('intermediate_size'),
    'num_layers': raw.size('num_hidden_layers', hf_raw.MOST_LAYERS),
    'num_heads': num_heads,
    'num_kv_heads': num_heads if num_kv_heads is None else num_kv_heads,
    'head_dim': d_model // num_heads if head_dim is None else head_dim,
    'max_positions': raw.size('max_position_embeddings'),
  }
  _check_sizes(raw, sizes)
  return sizes | {
    'model_type': raw.values['model_type'],
    'norm_epsilon': raw.get('rms_norm_eps', float),
  }


def _check_sizes(raw, sizes):
  bad = [f'{name}={size}' for name, size in sizes.items() if size < 1]
  if bad:
    raise errors.InputError(
      f'{raw.where}: {", ".join(bad)} is not supported; expected 1 or more.'
    )


def _check_heads_divide(raw, d_model, num_heads):
  """Raises InputError where the class does."""
  if d_model % num_heads:
    raise errors.InputError(
      f'{raw.where}: a hidden size of {d_model} is not a multiple of '
      f'{num_heads} attention heads.'
    )


def _llama(raw):
  """Llama 2 and 3, SmolLM2; and what Qwen shares with them."""
  result = _llama_like(
    raw,
    biases=_attention_biases(raw.get('attention_bias', bool))
    | _mlp_biases(raw.get('mlp_bias', bool)),
    windows=hf_raw.every_layer_full(raw),
  )
  _check_heads_divide(raw, result.d_model, result.num_heads)
  return result


def _qwen2(raw):
  """Qwen 2 and 2.5: biases on queries, keys and values."""
  return _llama_like(raw, biases=_QKV_BIASES, windows=hf_raw.qwen_windows(raw))


def _qwen3(raw):
  """Qwen 3: normalised queries and keys."""
  biases = _attention_biases(raw.get('attention_bias', bool))
  result = _llama_like(raw, biases=biases, windows=hf_raw.qwen_windows(raw))
  return dataclasses.replace(result, optional=result.optional | _QK_NORMS)


def _llama_like(raw, *, biases, windows):
  sizes = _sizes(raw)
  return Architecture(
    **sizes,
    norm='rms',
    activation=raw.activation('hidden_act'),
    attention_scale=sizes['head_dim'] ** -0.5,
    optional=_GATE | biases | _head(raw),
    ropes=(hf_raw.rope(raw, sizes['head_dim']),),
    rope_of_layer=(0,) * sizes['num_layers'],
    windows=windows,
  )


def _gemma2(raw):
  """Gemma 2: soft-caps, post-norms, every second layer sliding."""
  sizes = _sizes(raw)
  windows = hf_raw.windows(raw, sizes['num_layers'], sliding_period=2)
  return Architecture(
    **sizes,
    **_gemma(raw, sizes),
    ropes=(hf_raw.rope(raw, sizes['head_dim']),),
    rope_of_layer=(0,) * sizes['num_layers'],
    windows=windows,
  )


def _gemma3_text(raw):
  """Gemma 3's language model: query/key norms, two RoPE bases, 5:1 sliding."""
  sizes = _sizes(raw)
  period = raw.get('sliding_window_pattern', int)
  if period < 1:
    raise errors.InputError(
      f'{raw.where}: sliding_window_pattern={period} is not supported; '
      'expected 1 or more.'
    )
  windows = hf_raw.windows(raw, sizes['num_layers'], period)
  # transformers' class reads this cap and does not apply it.
  raw.require('attn_logit_softcapping', None)
  values = _gemma(raw, sizes)
  values['optional'] |= _QK_NORMS
  return Architecture(
    **sizes,
    **values,
    ropes=hf_raw.gemma3_ropes(raw, sizes['head_dim']),
    rope_of_layer=tuple(0 if window is None else 1 for window in windows),
    windows=windows,
  )


def _gemma(raw, sizes):
  """Returns what both versions of Gemma share."""
  raw.require('use_bidirectional_attention', False)
  raw.get('num_key_value_heads', int)  # not null
  _check_heads_divide(raw, sizes['d_model'], sizes['num_heads'])
  return {
    'norm': 'rms_plus_one',
    'activation': raw.activation('hidden_activation'),
    'attention_scale': raw.positive('query_pre_attn_scalar') ** -0.5,
    'optional': _GATE
    | _POST_NORMS
    | _attention_biases(raw.get('attention_bias', bool))
    | _head(raw),
    'embed_scale': sizes['d_model'] ** 0.5,
    'attention_cap': raw.positive_or_none('attn_logit_softcapping'),
    'logit_cap': raw.positive_or_none('final_logit_softcapping'),
  }


def _gemma3(raw):
  """Gemma 3 with vision: its language model, which the rest is not needed for.

  Special tokens are said in the outer object as well as in the inner one; the
  outer one says whether the head is the embedding.
  """
  _check_common(raw)
  raw.refuse_others(hf_classes.IDLE | hf_classes.IDLE_IN['gemma3'])
  outer = {
    key: value
    for key, value in raw.values.items()
    if key in ('bos_token_id', 'eos_token_id', 'pad_token_id')
    and value is not None
  }
  text = raw.within('text_config')
  text.require('model_type', 'gemma3_text')
  inner = {k: v for k, v in text.values.items() if k in outer and v is not None}
  values = dict(text.values) | outer | inner
  values['model_type'] = 'gemma3_text'
  tie = raw.get('tie_word_embeddings', bool, True)
  values['tie_word_embeddings'] = tie
  return architecture(values, text.where)


def _gpt_neox(raw):
  """GPT-NeoX and Pythia: parallel blocks, a part of each head rotated."""
  d_model, num_heads = raw.size('hidden_size'), raw.size('num_attention_heads')
  _check_heads_divide(raw, d_model, num_heads)
  head_dim = d_model // num_heads
  num_layers = raw.size('num_hidden_layers', hf_raw.MOST_LAYERS)
  raw.require('head_dim', head_dim)
  return Architecture(
    model_type='gpt_neox',
    vocab_size=raw.size('vocab_size'),
    d_model=d_model,
    d_mlp=raw.size('intermediate_size'),
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads,
    head_dim=head_dim,
    max_positions=raw.size('max_position_embeddings'),
    norm='layer',
    norm_epsilon=raw.get('layer_norm_eps', float),
    activation=raw.activation('hidden_act'),
    attention_scale=head_dim**-0.5,
    optional=_LAYER_NORM_BIASES
    | _attention_biases(raw.get('attention_bias', bool))
    | _mlp_biases(True, gate=False)
    | _head(raw),
    ropes=(hf_raw.neox_rope(raw, head_dim),),
    rope_of_layer=(0,) * num_layers,
    windows=(None,) * num_layers,
    is_parallel=raw.get('use_parallel_residual', bool),
  )


def _gpt2(raw):
  """GPT-2: learned positions, LayerNorm, biases everywhere."""
  values = dict(raw.values)
  for alias, name in hf_classes.GPT2_ALIASES.items():
    raw.read.add(alias)
    if alias in values:
      values[name] = values[alias]
  raw = dataclasses.replace(raw, values=values)
  raw.require('scale_attn_by_inverse_layer_idx', False)
  raw.require('reorder_and_upcast_attn', False)
  raw.require('scale_attn_weights', True)
  d_model, num_heads = raw.size('n_embd'), raw.size('n_head')
  _check_heads_divide(raw, d_model, num_heads)
  num_layers = raw.size('n_layer', hf_raw.MOST_LAYERS)
  d_mlp = raw.get_or_none('n_inner', int)
  _check_sizes(raw, {'n_inner': 1 if d_mlp is None else d_mlp})
  return Architecture(
    model_type='gpt2',
    vocab_size=raw.size('vocab_size'),
    d_model=d_model,
    d_mlp=4 * d_model if d_mlp is None else d_mlp,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads,
    head_dim=d_model // num_heads,
    max_positions=raw.size('n_positions'),
    norm='layer',
    norm_epsilon=raw.get('layer_norm_epsilon', float),
    activation=raw.activation('activation_function'),
    attention_scale=(d_model // num_heads) ** -0.5,
    optional=_LAYER_NORM_BIASES
    | _attention_biases(True)
    | _mlp_biases(True, gate=False)
    | frozenset({'positions_CD'})
    | _head(raw),
    ropes=(),
    rope_of_layer=(),
    windows=(None,) * num_layers,
  )


#: model_type → the function that reads its config.
FAMILIES: dict[str, Callable[[hf_raw.Raw], Architecture]] = {
  'gemma2': _gemma2,
  'gemma3_text': _gemma3_text,
  'gpt2': _gpt2,
  'gpt_neox': _gpt_neox,
  'llama': _llama,
  'qwen2': _qwen2,
  'qwen3': _qwen3,
}


def _head(raw):
  is_tied = raw.get('tie_word_embeddings', bool)
  return frozenset() if is_tied else _HEAD


def _attention_biases(are_there):
  return _QKV_BIASES | {'b_o_D'} if are_there else frozenset()


def _mlp_biases(are_there, *, gate=True):
  names = {'b_up_F', 'b_down_D'} | ({'b_gate_F'} if gate else set())
  return frozenset(names) if are_there else frozenset()
