"""config.json of each family with one key changed, dropped or added."""

import copy
import random

from helpers import families

#: model_type → its case in `families.CASES`.
CASES = {
  'gemma2': 'gemma2',
  'gemma3_text': 'gemma3',
  'gpt2': 'gpt2',
  'gpt_neox': 'gpt_neox',
  'llama': 'llama2',
  'qwen2': 'qwen2',
  'qwen3': 'qwen3',
}
_FULL, _SLIDING = 'full_attention', 'sliding_attention'
_LINEAR = {'rope_type': 'linear', 'factor': 4.0}
_ROPES = [
  None, {}, _LINEAR, {'type': 'linear', 'factor': 2.0}, {'rope_theta': 30.0},
  {'rope_type': 'yarn', 'factor': 2.0}, families.LLAMA3_ROPE,
  {'rope_type': 'dynamic', 'factor': 2.0}, families.DEFAULT_ROPE | {'a': 1},
  families.DEFAULT_ROPE | {'partial_rotary_factor': 0.5},
  _LINEAR | {'rope_theta': 7.0, 'attention_factor': 2.0},
  {_FULL: _LINEAR, _SLIDING: families.DEFAULT_ROPE},
  {_FULL: _LINEAR},
]  # fmt: skip
_ACTIVATIONS = ['gelu', 'gelu_new', 'relu', 'silu', 'tanh', 'quick_gelu', None]
#: Values to try; a key that a family's file lacks is added to it.
VALUES = {
  'hidden_act': _ACTIVATIONS,
  'hidden_activation': _ACTIVATIONS,
  'activation_function': _ACTIVATIONS,
  'rms_norm_eps': [1e-6, 0.5, None],
  'layer_norm_eps': [1e-5, 0.5],
  'layer_norm_epsilon': [1e-5, 0.5],
  'num_attention_heads': [2, 4, 5, 8, None],
  'n_head': [2, 3, 5],
  'num_key_value_heads': [1, 2, 4, None],
  'head_dim': [6, 8, 12, 24, None],
  'num_hidden_layers': [1, 3, 4],
  'hidden_size': [24, 48],
  'intermediate_size': [20, 40],
  'n_inner': [None, 40, 20],
  'vocab_size': [50, 61],
  'max_position_embeddings': [40, 160, 4096],
  'n_positions': [40, 160],
  'n_ctx': [10],
  'rope_theta': [5.0, 10_000.0],
  'rope_parameters': _ROPES,
  'rope_scaling': _ROPES,
  'rope_local_base_freq': [5.0],
  'rotary_pct': [0.25, 0.5, 1.0],
  'rotary_emb_base': [7, 100],
  'partial_rotary_factor': [0.5, 1.0],
  'original_max_position_embeddings': [20],
  'sliding_window': [1, 3, 7, 1000, None],
  'sliding_window_pattern': [2, 3, 6],
  '_sliding_window_pattern': [2],
  'use_sliding_window': [True, False],
  'max_window_layers': [0, 1, 3, 28],
  'layer_types': [
    None, [_FULL] * 3, [_SLIDING] * 3, [_FULL, _SLIDING, _FULL], [_FULL] * 2,
    ['chunked_attention'] * 3,
  ],
  'query_pre_attn_scalar': [1, 3, 256],
  'attn_logit_softcapping': [None, 1.5, 30.0],
  'final_logit_softcapping': [None, 1.5, 30.0],
  'attention_bias': [True, False],
  'mlp_bias': [True, False],
  'qkv_bias': [False],
  'use_parallel_residual': [True, False],
  'use_bidirectional_attention': [True, False, None],
  'is_causal': [False, True],
  'is_decoder': [True, False],
  'is_encoder_decoder': [True],
  'add_cross_attention': [True],
  'scale_attn_weights': [False, True],
  'scale_attn_by_inverse_layer_idx': [True, False],
  'reorder_and_upcast_attn': [True, False],
  'tie_word_embeddings': [True, False],
  'per_layer_config': [{'1': {'num_attention_heads': 2}}, {}],
  'pruned_heads': [{'0': [1]}],
  'attention_dropout': [0.5],
  'attn_pdrop': [0.5],
  'initializer_range': [0.5],
  'use_cache': [False],
  'pretraining_tp': [2],
  'chunk_size_feed_forward': [4],
  'bos_token_id': [None, 5, 700],
  'eos_token_id': [None, [1, 5]],
  'pad_token_id': [None, 7, -1],
  'embedding_multiplier': [2.0],
  'logits_scaling': [2.0],
  'attention_multiplier': [2.0],
  'residual_multiplier': [2.0],
}  # fmt: skip
_DROP = object()


def list_changes(config):
  """Returns (description, config) of each change of one key, in order."""
  found = []
  for key in sorted({*config, *VALUES} - {'model_type', 'architectures'}):
    values = list(VALUES.get(key, ()))
    if key in config:
      values.append(_DROP)
    for value in values:
      changed = copy.deepcopy(config)
      if value is _DROP:
        del changed[key]
        said = f'without {key}'
      else:
        changed[key] = copy.deepcopy(value)
        said = f'{key}={value!r}'
      found.append((said, changed))
  return found


def draw_changes(config, count, seed):
  """Returns some of the changes, no two of them the same."""
  return random.Random(seed).sample(list_changes(config), count)
