"""config.json → Architecture: one function for each of Hugging Face's families.

Every key that changes what a model computes is read or refused; no value is
assumed where the family's own default is not known. Both spellings are read:
transformers 5 keeps RoPE under `rope_parameters`, transformers 4 in
`rope_theta` and `rope_scaling` (GPT-NeoX: `rotary_emb_base`, `rotary_pct`).
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

from jumprelu_jax import errors
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
    errors.InputError: the family, or something that it computes, is not ours.
  """
  raw = hf_raw.Raw(values, where)
  model_type = raw.values.get('model_type')
  if model_type == 'gemma3':
    return _gemma3(raw)
  if model_type not in FAMILIES:
    raise errors.InputError(
      f'{where}: model_type={model_type!r} is not supported; expected one of '
      f'{", ".join(FAMILIES)}, gemma3.'
    )
  result = FAMILIES[model_type](raw)
  if result.num_heads % result.num_kv_heads:
    raise errors.InputError(
      f'{where}: {result.num_heads} attention heads are not a multiple of '
      f'{result.num_kv_heads} key/value heads.'
    )
  return dataclasses.replace(result, **_token_ids(raw, result.vocab_size))


def _token_ids(raw, vocab_size):
  """Returns bos_id, pad_id and special_ids; eos_token_id may be a list."""
  bos = raw.values.get('bos_token_id')
  eos = raw.values.get('eos_token_id')
  pad = raw.values.get('pad_token_id')
  eos = eos if isinstance(eos, list) else [eos]
  ids = [i for i in (bos, *eos, pad) if i is not None]
  if not all(type(i) is int for i in ids):
    raise errors.InputError(
      f'{raw.where}: token ids {ids} are not supported; expected integers.'
    )
  # Padding sits behind the text, where a causal model does not see it: any
  # special token will do that the model has; some configs say -1, or the id of
  # a token that was added without resizing the model.
  ids_of_model = (i for i in (pad, *eos, bos) if i in range(vocab_size))
  padding = next(ids_of_model, 0)
  return {
    'bos_id': bos,
    'pad_id': padding,
    'special_ids': tuple(dict.fromkeys(ids)),
  }


def _sizes(raw, **defaults):
  """Returns what families with Llama's key names share."""
  d_model = raw.get('hidden_size', int)
  num_heads = raw.get(
    'num_attention_heads', int, defaults.get('num_heads', hf_raw.REQUIRED)
  )
  return {
    'model_type': raw.values['model_type'],
    'vocab_size': raw.get(
      'vocab_size', int, defaults.get('vocab_size', hf_raw.REQUIRED)
    ),
    'd_model': d_model,
    'd_mlp': raw.get('intermediate_size', int),
    'num_layers': raw.get('num_hidden_layers', int),
    'num_heads': num_heads,
    'num_kv_heads': raw.get(
      'num_key_value_heads', int, defaults.get('num_kv_heads', num_heads)
    ),
    'head_dim': raw.get(
      'head_dim', int, defaults.get('head_dim', d_model // num_heads)
    ),
    'max_positions': raw.get(
      'max_position_embeddings',
      int,
      defaults.get('max_positions', hf_raw.REQUIRED),
    ),
    'norm_epsilon': raw.get(
      'rms_norm_eps', float, defaults.get('norm_epsilon', hf_raw.REQUIRED)
    ),
  }


def _llama(raw):
  """Llama 2 and 3, SmolLM2; and what Qwen shares with them."""
  return _llama_like(
    raw,
    biases=_attention_biases(raw.get('attention_bias', bool, False))
    | _mlp_biases(raw.get('mlp_bias', bool, False)),
    windows=hf_raw.every_layer_full(raw),
  )


def _qwen2(raw):
  """Qwen 2 and 2.5: biases on queries, keys and values."""
  return _llama_like(raw, biases=_QKV_BIASES, windows=hf_raw.qwen_windows(raw))


def _qwen3(raw):
  """Qwen 3: normalised queries and keys."""
  biases = _attention_biases(raw.get('attention_bias', bool, False))
  result = _llama_like(
    raw, biases=biases, windows=hf_raw.qwen_windows(raw), head_dim=128
  )
  return dataclasses.replace(result, optional=result.optional | _QK_NORMS)


def _llama_like(raw, *, biases, windows, **defaults):
  sizes = _sizes(raw, **defaults)
  raw.within('rope_parameters').require('partial_rotary_factor', 1.0)
  return Architecture(
    **sizes,
    norm='rms',
    activation=raw.activation('hidden_act'),
    attention_scale=sizes['head_dim'] ** -0.5,
    optional=_GATE | biases | _head(raw, is_tied_by_default=False),
    ropes=(hf_raw.rope(raw, sizes['head_dim'], theta=10_000.0),),
    rope_of_layer=(0,) * sizes['num_layers'],
    windows=windows,
  )


def _gemma2(raw):
  """Gemma 2: soft-caps, post-norms, every second layer sliding."""
  raw.require('use_bidirectional_attention', False)
  sizes = _sizes(raw, head_dim=256, norm_epsilon=1e-6)
  scale = raw.get('query_pre_attn_scalar', float)
  return Architecture(
    **sizes,
    norm='rms_plus_one',
    activation=raw.activation('hidden_activation', 'hidden_act'),
    attention_scale=scale**-0.5,
    optional=_GATE
    | _POST_NORMS
    | _attention_biases(raw.get('attention_bias', bool, False))
    | _head(raw, is_tied_by_default=True),
    ropes=(hf_raw.rope(raw, sizes['head_dim'], theta=10_000.0),),
    rope_of_layer=(0,) * sizes['num_layers'],
    windows=hf_raw.windows(raw, sizes['num_layers'], sliding_period=2),
    embed_scale=sizes['d_model'] ** 0.5,
    attention_cap=raw.get('attn_logit_softcapping', float, None),
    logit_cap=raw.get('final_logit_softcapping', float, None),
  )


def _gemma3_text(raw):
  """Gemma 3's language model: query/key norms, two RoPE bases, 5:1 sliding.

  The hub's multimodal folders leave out what equals the class's defaults, so
  those are here (transformers' Gemma3TextConfig).
  """
  raw.require('use_bidirectional_attention', False)
  sizes = _sizes(
    raw,
    vocab_size=262_208,
    num_heads=8,
    num_kv_heads=4,
    head_dim=256,
    max_positions=131_072,
    norm_epsilon=1e-6,
  )
  period = raw.get('sliding_window_pattern', int, 6)
  windows = hf_raw.windows(
    raw, sizes['num_layers'], period, default_window=4096
  )
  ropes = hf_raw.gemma3_ropes(raw, sizes['head_dim'])
  activation = 'gelu_tanh'
  if raw.values.get('hidden_activation'):
    activation = raw.activation('hidden_activation')
  return Architecture(
    **sizes,
    norm='rms_plus_one',
    activation=activation,
    attention_scale=raw.get('query_pre_attn_scalar', float, 256.0) ** -0.5,
    optional=_GATE
    | _POST_NORMS
    | _QK_NORMS
    | _attention_biases(raw.get('attention_bias', bool, False))
    | _head(raw, is_tied_by_default=True),
    ropes=ropes,
    rope_of_layer=tuple(0 if window is None else 1 for window in windows),
    windows=windows,
    embed_scale=sizes['d_model'] ** 0.5,
    attention_cap=raw.get('attn_logit_softcapping', float, None),
    logit_cap=raw.get('final_logit_softcapping', float, None),
  )


def _gemma3(raw):
  """Gemma 3 with vision: its language model, which the rest is not needed for.

  Special tokens are said in the outer object as well as in the inner one.
  """
  outer = {
    key: value
    for key, value in raw.values.items()
    if key.endswith('_token_id') and value is not None
  }
  inner = {'model_type': 'gemma3_text'} | dict(raw.within('text_config').values)
  ids = {'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0} | outer
  inner = ids | {k: v for k, v in inner.items() if v is not None}
  return architecture(inner, f'{raw.where}: text_config')


def _gpt_neox(raw):
  """GPT-NeoX and Pythia: parallel blocks, a part of each head rotated."""
  d_model, num_heads = (
    raw.get('hidden_size', int),
    raw.get('num_attention_heads', int),
  )
  head_dim, num_layers = d_model // num_heads, raw.get('num_hidden_layers', int)
  spelled = raw.within('rope_parameters')
  share = spelled.get(
    'partial_rotary_factor', float, raw.get('rotary_pct', float, 0.25)
  )
  rotated = int(head_dim * share)
  theta = raw.get('rotary_emb_base', float, 10_000.0)
  biases = _attention_biases(raw.get('attention_bias', bool, True))
  return Architecture(
    model_type='gpt_neox',
    vocab_size=raw.get('vocab_size', int),
    d_model=d_model,
    d_mlp=raw.get('intermediate_size', int),
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads,
    head_dim=head_dim,
    max_positions=raw.get('max_position_embeddings', int),
    norm='layer',
    norm_epsilon=raw.get('layer_norm_eps', float, 1e-5),
    activation=raw.activation('hidden_act'),
    attention_scale=head_dim**-0.5,
    optional=_LAYER_NORM_BIASES
    | biases
    | _mlp_biases(True, gate=False)
    | _head(raw, is_tied_by_default=False),
    ropes=(hf_raw.rope(raw, rotated, theta=theta),),
    rope_of_layer=(0,) * num_layers,
    windows=(None,) * num_layers,
    is_parallel=raw.get('use_parallel_residual', bool, True),
  )


def _gpt2(raw):
  """GPT-2: learned positions, LayerNorm, biases everywhere."""
  raw.require('scale_attn_weights', True)
  raw.require('scale_attn_by_inverse_layer_idx', False)
  raw.require('reorder_and_upcast_attn', False)
  raw.require('add_cross_attention', False)
  d_model, num_heads = raw.get('n_embd', int), raw.get('n_head', int)
  num_layers = raw.get('n_layer', int)
  return Architecture(
    model_type='gpt2',
    vocab_size=raw.get('vocab_size', int),
    d_model=d_model,
    d_mlp=raw.get('n_inner', int, 4 * d_model),
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_heads,
    head_dim=d_model // num_heads,
    max_positions=raw.get('n_positions', int),
    norm='layer',
    norm_epsilon=raw.get('layer_norm_epsilon', float, 1e-5),
    activation=raw.activation('activation_function'),
    attention_scale=(d_model // num_heads) ** -0.5,
    optional=_LAYER_NORM_BIASES
    | _attention_biases(True)
    | _mlp_biases(True, gate=False)
    | frozenset({'positions_CD'})
    | _head(raw, is_tied_by_default=True),
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


def _head(raw, *, is_tied_by_default):
  is_tied = raw.get('tie_word_embeddings', bool, is_tied_by_default)
  return frozenset() if is_tied else _HEAD


def _attention_biases(are_there):
  return _QKV_BIASES | {'b_o_D'} if are_there else frozenset()


def _mlp_biases(are_there, *, gate=True):
  names = {'b_up_F', 'b_down_D'} | ({'b_gate_F'} if gate else set())
  return frozenset(names) if are_there else frozenset()
