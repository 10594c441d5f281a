"""The Gemma 2 that we train ourselves: its config.json, and back."""

from __future__ import annotations

from typing import Any

from jumprelu_jax import errors
from jumprelu_jax.lm import hf_config
from jumprelu_jax.lm.architecture import Architecture


def architecture(**values: Any) -> Architecture:
  """Returns a Gemma 2 architecture from config.json's keys, for training."""
  defaults = {
    'model_type': 'gemma2',
    'hidden_activation': 'gelu_pytorch_tanh',
    'bos_token_id': 2,
    'eos_token_id': 1,
    'pad_token_id': 0,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
  }
  return hf_config.architecture(defaults | values, 'values')


def config_json(model: Architecture) -> dict[str, Any]:
  """Returns the config.json of a Gemma 2 that we trained.

  Raises:
    errors.InputError: a config.json that is written here cannot say what the
      architecture is.
  """
  a = model
  if a.model_type != 'gemma2':
    raise errors.InputError(
      f'{a.model_type} folders are not written; expected gemma2.'
    )
  bos, eos, pad = a.special_ids
  values = {
    'architectures': ['Gemma2ForCausalLM'],
    'model_type': 'gemma2',
    'vocab_size': a.vocab_size,
    'hidden_size': a.d_model,
    'intermediate_size': a.d_mlp,
    'num_hidden_layers': a.num_layers,
    'num_attention_heads': a.num_heads,
    'num_key_value_heads': a.num_kv_heads,
    'head_dim': a.head_dim,
    'max_position_embeddings': a.max_positions,
    'sliding_window': next(filter(None, a.windows), None),
    # transformers wants an integer; 32**-0.5 gives back 32.000000000000004.
    'query_pre_attn_scalar': round(a.attention_scale**-2),
    'rope_theta': a.ropes[0].theta,
    'rms_norm_eps': a.norm_epsilon,
    'attn_logit_softcapping': a.attention_cap,
    'final_logit_softcapping': a.logit_cap,
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'tie_word_embeddings': 'head_VD' not in a.optional,
    'bos_token_id': bos,
    'eos_token_id': eos,
    'pad_token_id': pad,
  }
  if hf_config.architecture(values, 'config.json') != a:
    raise errors.InputError(
      'this Gemma 2 cannot be written: its config.json would describe another '
      'model (expected integers for query_pre_attn_scalar, and no biases or '
      'other layer types than those of Gemma 2).'
    )
  return values
