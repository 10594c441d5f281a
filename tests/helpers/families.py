"""Tiny random models of every family in transformers, and hooks into them.

Every constant differs from transformers' default and is large or small enough
to matter: windows are shorter than the sequences, soft-caps bend, eps shows,
heads are grouped and heads * head_dim != hidden_size where a family allows it.
"""

import copy

import numpy as np
import torch
import transformers

LENGTH = 150  # three chunks of queries
LAYERS = 3
SIZES = {
  'vocab_size': 61,
  'hidden_size': 48,
  'intermediate_size': 40,
  'num_hidden_layers': LAYERS,
  'num_attention_heads': 4,
  'max_position_embeddings': 160,
  'bos_token_id': 2,
  'eos_token_id': 1,
  'pad_token_id': 0,
}
GROUPED = SIZES | {'num_key_value_heads': 2, 'rms_norm_eps': 1e-2}
DEFAULT_ROPE = {'rope_type': 'default', 'rope_theta': 100.0}
LLAMA3_ROPE = {
  'rope_type': 'llama3', 'rope_theta': 100.0, 'factor': 8.0,
  'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
  'original_max_position_embeddings': 40,
}  # fmt: skip
GEMMA2 = GROUPED | {
  'head_dim': 8,
  'sliding_window': 5,
  'query_pre_attn_scalar': 3,
  'attn_logit_softcapping': 2.0,
  'final_logit_softcapping': 3.0,
  'rope_parameters': DEFAULT_ROPE,
}
GEMMA3 = GROUPED | {
  'head_dim': 8,
  'sliding_window': 5,
  'query_pre_attn_scalar': 3,
  'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention'],
  'rope_parameters': {
    'full_attention': {
      'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1000.0,
    },
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
  },
}  # fmt: skip
LLAMA = GROUPED | {'rope_parameters': DEFAULT_ROPE}
NEOX = SIZES | {
  'layer_norm_eps': 1e-2,
  'rope_parameters': DEFAULT_ROPE | {'partial_rotary_factor': 0.5},
}
GPT2 = {
  'vocab_size': 61, 'n_embd': 48, 'n_inner': 40, 'n_layer': LAYERS, 'n_head': 4,
  'n_positions': 160, 'layer_norm_epsilon': 1e-2,
  'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0,
}  # fmt: skip
#: name of a case → (config class, values).
CASES = {
  'gemma2': ('Gemma2Config', GEMMA2),
  'gemma2_mha_uncapped': (
    'Gemma2Config',
    GEMMA2
    | {
      'num_key_value_heads': 4,
      'head_dim': 16,
      'attn_logit_softcapping': None,
      'final_logit_softcapping': None,
    },
  ),
  'gemma3': ('Gemma3TextConfig', GEMMA3),
  'llama2': ('LlamaConfig', LLAMA),
  'llama3_tied': (
    'LlamaConfig',
    LLAMA
    | {
      'rope_parameters': LLAMA3_ROPE,
      'tie_word_embeddings': True,
      'head_dim': 8,
    },
  ),
  'llama_biases': (
    'LlamaConfig',
    LLAMA | {'attention_bias': True, 'mlp_bias': True},
  ),
  'qwen2': (
    'Qwen2Config',
    LLAMA
    | {
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 2,
    },
  ),
  'qwen3': ('Qwen3Config', LLAMA | {'head_dim': 8}),
  'gpt_neox': ('GPTNeoXConfig', NEOX),
  'gpt_neox_sequential': (
    'GPTNeoXConfig',
    NEOX | {'use_parallel_residual': False, 'attention_bias': False},
  ),
  'gpt2': ('GPT2Config', GPT2),
}
_LLAMA_MODULES = {
  'resid_pre': ('', 'in'),
  'attn_z': ('self_attn.o_proj', 'in'),
  'attn_out': ('self_attn.o_proj', 'out'),
  'resid_mid': ('post_attention_layernorm', 'in'),
  'mlp_in': ('mlp', 'in'),
  'mlp_out': ('mlp', 'out'),
  'resid_post': ('', 'out'),
}
_GEMMA_MODULES = _LLAMA_MODULES | {
  'attn_out': ('post_attention_layernorm', 'out'),
  'resid_mid': ('pre_feedforward_layernorm', 'in'),
  'mlp_out': ('post_feedforward_layernorm', 'out'),
}
_NEOX_MODULES = _LLAMA_MODULES | {
  'attn_z': ('attention.dense', 'in'),
  'attn_out': ('attention.dense', 'out'),
}
_GPT2_MODULES = _LLAMA_MODULES | {
  'attn_z': ('attn.c_proj', 'in'),
  'attn_out': ('attn.c_proj', 'out'),
  'resid_mid': ('ln_2', 'in'),
}
#: model_type → (list of blocks, where a site is in a block of transformers').
MODULES = {
  'gemma2': ('model.layers', _GEMMA_MODULES),
  'gemma3_text': ('model.layers', _GEMMA_MODULES),
  'llama': ('model.layers', _LLAMA_MODULES),
  'qwen2': ('model.layers', _LLAMA_MODULES),
  'qwen3': ('model.layers', _LLAMA_MODULES),
  'gpt_neox': ('gpt_neox.layers', _NEOX_MODULES),
  'gpt2': ('transformer.h', _GPT2_MODULES),
}


def make(case, **changes):
  """Returns transformers' model of a case, every parameter random."""
  cls, values = CASES[case]
  config = getattr(transformers, cls)(**copy.deepcopy(values | changes))
  model = transformers.AutoModelForCausalLM.from_config(
    config, attn_implementation='eager', dtype=torch.float32
  ).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for p in model.parameters():
      # As made, norms' gains are all equal, and biases zero: faults would hide.
      scale = 0.5 if p.ndim == 1 else p.shape[-1] ** -0.5
      p.copy_(scale * torch.randn(p.shape, generator=generator))
  return model


def tokens(seed=0, length=LENGTH):
  rng = np.random.default_rng(seed)
  return rng.integers(3, SIZES['vocab_size'], (2, length))


def run(model, tokens_BL, hooks):
  """Returns transformers' logits, with fn called at each hooked site.

  Args:
    model: from `make`.
    tokens_BL: token ids.
    hooks: {(site, layer): fn}; what fn returns flows on, None changes nothing.
  """
  blocks_path, places = MODULES[model.config.model_type]
  handles = []
  for (site, layer), fn in hooks.items():
    path, side = places[site]
    block = model.get_submodule(f'{blocks_path}.{layer}')
    handles.append(_hook(block.get_submodule(path), side, fn))
  try:
    with torch.no_grad():
      return model(torch.from_numpy(tokens_BL)).logits.float().numpy()
  finally:
    for handle in handles:
      handle.remove()


def _hook(module, side, fn):
  if side == 'in':

    def before(module, args):
      x = fn(args[0])
      return None if x is None else (x, *args[1:])

    return module.register_forward_pre_hook(before)

  def after(module, args, output):
    if not isinstance(output, tuple):
      return fn(output)
    x = fn(output[0])
    return None if x is None else (x, *output[1:])

  return module.register_forward_hook(after)


def assert_close(got, want, **kwargs):
  """Holds an array to a reference's, to 1e-5 of its largest value."""
  # Relative to the largest value: a small entry is a difference of large ones
  # and keeps their rounding error.
  atol = 1e-5 * np.abs(want).max()
  np.testing.assert_allclose(got, want, rtol=0, atol=atol, **kwargs)
