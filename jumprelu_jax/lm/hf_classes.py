"""What transformers' classes of configs say: defaults, and idle keys.

Facts of transformers 5. A key that a config.json lacks has its class's default;
a key that is neither read nor listed here is refused by name.
"""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
  'attention_bias': False,
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'bos_token_id': None,
  'eos_token_id': None,
  'pad_token_id': None,
}
_QWEN = _COMMON | {
  'num_attention_heads': 32,
  'num_key_value_heads': 32,
  'max_position_embeddings': 32_768,
  'use_sliding_window': False,
  'sliding_window': 4096,
  'max_window_layers': 28,
}
_GEMMA = {
  'num_attention_heads': 8,
  'num_key_value_heads': 4,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'rms_norm_eps': 1e-6,
  'attention_bias': False,
  'query_pre_attn_scalar': 256,
  'sliding_window': 4096,
  'tie_word_embeddings': True,
  'bos_token_id': 2,
  'eos_token_id': 1,
  'pad_token_id': 0,
}
#: model_type → the defaults of its class. Sizes that the weights show anyway
#: are left out, but for Gemma 3, whose files leave out what equals them.
DEFAULTS: dict[str, dict[str, Any]] = {
  'gemma2': _GEMMA
  | {
    'max_position_embeddings': 8192,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
  },
  'gemma3_text': _GEMMA
  | {
    'vocab_size': 262_208,
    'hidden_size': 2304,
    'intermediate_size': 9216,
    'num_hidden_layers': 26,
    'max_position_embeddings': 131_072,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'sliding_window_pattern': 6,
  },
  'gpt2': {
    'n_head': 12,
    'n_inner': None,
    'n_positions': 1024,
    'activation_function': 'gelu_new',
    'layer_norm_epsilon': 1e-5,
    'tie_word_embeddings': True,
    'bos_token_id': 50_256,
    'eos_token_id': 50_256,
    'pad_token_id': None,
  },
  'gpt_neox': {
    'num_attention_heads': 64,
    'hidden_act': 'gelu',
    'max_position_embeddings': 2048,
    'layer_norm_eps': 1e-5,
    'attention_bias': True,
    'use_parallel_residual': True,
    'rotary_pct': 0.25,
    'rotary_emb_base': 10_000.0,
    'tie_word_embeddings': False,
    'bos_token_id': 0,
    'eos_token_id': 2,
    'pad_token_id': None,
  },
  'llama': _COMMON
  | {
    'num_attention_heads': 32,
    'num_key_value_heads': None,
    'head_dim': None,
    'max_position_embeddings': 2048,
    'mlp_bias': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
  },
  # Its biases are the class's own.
  'qwen2': {k: v for k, v in _QWEN.items() if k != 'attention_bias'},
  'qwen3': _QWEN | {'head_dim': 128},
}
#: Keys of which one value, or null, is what we compute.
ONLY: dict[str, Any] = {
  'add_cross_attention': False,
  'chunk_size_feed_forward': 0,
  'is_encoder_decoder': False,
  'per_layer_config': {},
  'pruned_heads': {},
  'rope_interleaved': False,
  'use_mrope': False,
}
_IDLE = """
  model_type architectures dtype torch_dtype transformers_version
  transformers.js_config name_or_path _name_or_path _commit_hash
  attn_implementation _attn_implementation _attn_implementation_autoset
  _attn_implementation_internal _experts_implementation_internal
  cache_implementation use_cache torchscript use_bfloat16 tf_legacy_loss
  return_dict return_dict_in_generate output_attentions output_hidden_states
  output_scores initializer_range pretraining_tp gradient_checkpointing
  attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop
  attn_pdrop id2label label2id num_labels problem_type finetuning_task
  task_specific_params tokenizer_class prefix tie_encoder_decoder is_decoder
  cross_attention_hidden_size decoder_start_token_id sep_token_id
  summary_type summary_use_proj summary_activation summary_proj_to_labels
  summary_first_dropout summary_last_dropout n_ctx
  assistant_lookbehind assistant_confidence_threshold target_lookbehind
  num_assistant_tokens num_assistant_tokens_schedule
  temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff top_h
  do_sample num_beams num_beam_groups early_stopping max_length max_new_tokens
  min_length min_new_tokens length_penalty repetition_penalty diversity_penalty
  encoder_no_repeat_ngram_size encoder_repetition_penalty no_repeat_ngram_size
  bad_words_ids num_return_sequences remove_invalid_values renormalize_logits
  forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens
  exponential_decay_length_penalty guidance_scale max_time stop_strings
  unsloth_version unsloth_fixed is_llama_config _sliding_window_pattern
  """
#: Keys that change no logit of a text: of training, of generation, of other
#: heads, of how it is computed, and of who wrote the file.
IDLE = frozenset(_IDLE.split())
# Of the outer object of a model with vision.
_IDLE_OUTSIDE = """
  text_config vision_config mm_tokens_per_image boi_token_index
  eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id
  tie_word_embeddings bos_token_id eos_token_id pad_token_id
  """
#: The same, of one family alone.
IDLE_IN: dict[str, frozenset[str]] = {
  # Gemma reads hidden_activation instead; the hub's files have both.
  'gemma2': frozenset({'hidden_act', 'sliding_window_size'}),
  'gemma3_text': frozenset({'hidden_act'}),
  'gemma3': frozenset(_IDLE_OUTSIDE.split()),
}
#: GPT-2's other names of its keys, which win over its own.
GPT2_ALIASES = {
  'hidden_size': 'n_embd',
  'max_position_embeddings': 'n_positions',
  'num_attention_heads': 'n_head',
  'num_hidden_layers': 'n_layer',
}
