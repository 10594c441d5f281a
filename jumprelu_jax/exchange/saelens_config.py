"""SAELens' cfg.json, of every version: what is computed, idle or refused.

Of version 6, and of those before, whose keys all lie outside, which subtract
b_dec unless they say otherwise, and name their activation.
"""

from __future__ import annotations

from collections.abc import Mapping
import re
from typing import Any

from jumprelu_jax import errors
from jumprelu_jax.exchange import details as details_lib
from jumprelu_jax.lm import hf_raw

_DEFAULTS = {
  'architecture': 'standard',
  'apply_b_dec_to_input': True,
  'normalize_activations': 'none',
  'reshape_activations': 'none',
  'rescale_acts_by_decoder_norm': False,
  'finetuning_scaling_factor': False,
  'k': 100,
}
# Names of versions before 6, and before 2.
_OLD_NAMES = {
  'activation_fn_str': 'activation_fn',
  'hook_point': 'hook_name',
  'hook_point_layer': 'hook_layer',
  'hook_point_head_index': 'hook_head_index',
}
# Where it belongs, how it was trained, and who wrote it. Weights are read as
# they are stored, whatever dtype SAELens would cast them to.
_PLACE = """
  model_name model_class_name hook_name hook_layer hook_name_out hook_layer_out
  hook_point_out hf_hook_name hf_hook_name_out context_size prepend_bos
  exclude_special_tokens seqpos_slice neuronpedia_id sae_lens_version
  sae_lens_training_version dataset_path dataset_trust_remote_code
  training_architecture training_architecture_details l0 num_dead_features
  layer release sae_id weights_path repo_id folder_name
"""
_TRAINING = """
  dtype device hook_eval streaming is_dataset_tokenized use_chat_formatting
  use_cached_activations cached_activations_path from_pretrained_path
  n_batches_in_buffer training_tokens store_batch_size_prompts
  disable_concat_sequences sequence_separator_token activations_mixing_fraction
  llm_device act_store_device prefetch_llm_batches seed autocast autocast_lm
  compile_llm llm_compilation_mode compile_sae sae_compilation_mode
  train_batch_size_tokens lr lr_scheduler_name lr_warm_up_steps lr_end
  lr_decay_steps n_restart_cycles dead_feature_window feature_sampling_window
  dead_feature_threshold n_eval_batches eval_batch_size_prompts logger
  n_checkpoints checkpoint_path save_final_checkpoint output_path
  resume_from_checkpoint verbose model_kwargs n_batches_for_norm_estimate
  expansion_factor from_pretrained_path d_sae_override l1_coefficient lp_norm
  l1_warm_up_steps scale_sparsity_penalty_by_decoder_norm l0_lambda
  mse_loss_normalization use_ghost_grads normalize_sae_decoder noise_scale
  b_dec_init_method decoder_orthogonal_init decoder_heuristic_init
  decoder_heuristic_init_norm init_encoder_as_decoder_transpose
  jumprelu_init_threshold jumprelu_bandwidth adam_beta1 adam_beta2
  finetuning_tokens finetuning_method log_to_wandb wandb_project wandb_id
  run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs resume
  tokens_per_buffer train_batch_size store_batch_size n_batches_in_store_buffer
  use_error_term
"""
_IDLE = frozenset(f'{_PLACE} {_TRAINING}'.split())
# Of how TransformerLens loads its model: where and how, not what.
_IDLE_LOADING = frozenset(
  """
  dtype torch_dtype device n_devices n_ctx move_to_device tokenizer
  default_prepend_bos default_padding_side trust_remote_code local_files_only
  token cache_dir low_cpu_mem_usage device_map attn_implementation
  center_unembed hf_model use_cache
  """.split()  # noqa: SIM905
)
# Sites that are a write to the residual stream, or the stream itself.
_CENTRED = ('resid_pre', 'resid_mid', 'resid_post', 'mlp_out', 'attn_out')
_LAYER_NORM = re.compile(r'(.*/)?(distil)?(gpt2|pythia|gpt-neox|gpt-neo)')
_RMS_NORM = re.compile(
  r'(.*/)?(meta-)?(gemma|llama|qwen|mistral|smollm|tiny-?llama)'
)


def read(config: Mapping[str, Any], where: str) -> hf_raw.Raw:
  """Returns a config's keys by today's names, metadata among them.

  Raises:
    errors.InputError: a key is there twice, with two values.
  """
  metadata = config.get('metadata')
  if metadata is not None and not isinstance(metadata, dict):
    raise errors.InputError(f'{where}: metadata is no object.')
  values: dict[str, Any] = {}
  for key, value in (*(metadata or {}).items(), *config.items()):
    name = _OLD_NAMES.get(key, key)
    if values.get(name) is not None and values[name] != value:
      raise errors.InputError(
        f'{where} has two values of {name}: {values[name]!r:.60} and '
        f'{value!r:.60}.'
      )
    values[name] = value
  values.pop('metadata', None)
  if isinstance(values.get('normalize_activations'), bool):
    is_on = values['normalize_activations']
    values['normalize_activations'] = (
      'expected_average_only_in' if is_on else None
    )
  for key in ('normalize_activations', 'reshape_activations'):
    if values.get(key, 'none') is None:
      values[key] = 'none'
  return hf_raw.Raw(values, where, _DEFAULTS)


def read_architecture(raw: hf_raw.Raw, known: Mapping[str, Any]) -> str:
  """Returns a name of `known`; checks the activation of older versions."""
  name = raw.get('architecture', str)
  activation = raw.get_or_none('activation_fn', str, None) or 'relu'
  if activation == 'topk' and name == 'standard':
    name = 'topk'
  if activation not in ('relu', 'topk') or (
    activation == 'topk' and name != 'topk'
  ):
    raise errors.InputError(
      f'{raw.where}: activation_fn={activation!r} of a {name} SAE is not read; '
      'expected relu, or topk.'
    )
  if name not in known:
    raise errors.InputError(
      f'{raw.where}: architecture {name!r} is not read; expected one of '
      f'{", ".join(known)}.'
    )
  return name


def read_k(raw: hf_raw.Raw, is_topk: bool) -> int | None:
  """Returns k of a TopK SAE; None of others."""
  kwargs = raw.within('activation_fn_kwargs')
  if not is_topk:
    raw.read.add('k')  # of the training as BatchTopK
    if kwargs.values.get('k') is None:
      kwargs.refuse_others()
    return None
  if raw.values.get('activation_fn') == 'topk' or kwargs.values:
    k = kwargs.get('k', int, raw.values.get('k', hf_raw.REQUIRED))
    kwargs.refuse_others()
    raw.require('k', k)
    return k
  return raw.get('k', int)


def check_place(raw: hf_raw.Raw) -> None:
  """Raises InputError for one head, or tokens that are normalised."""
  how = raw.get('normalize_activations', str)
  if how != 'none':
    raise errors.InputError(
      f'{raw.where}: normalize_activations={how!r} is not folded into '
      'the weights; save it from SAELens with the scale folded (its trainer '
      'does so at the end), or with none.'
    )
  if raw.get('reshape_activations', str) not in ('none', 'hook_z'):
    raise errors.InputError(
      f'{raw.where}: reshape_activations='
      f'{raw.values["reshape_activations"]!r} is not read; expected none or '
      'hook_z.'
    )
  for key in ('hook_head_index', 'hook_head_index_out'):
    if (head := raw.get_or_none(key, int, None)) is not None:
      raise errors.InputError(
        f'{raw.where}: {key}={head} says that the SAE is of one attention '
        'head, which is no site here; expected an SAE of all heads.'
      )


def read_places(raw: hf_raw.Raw) -> tuple[tuple[str, int], tuple[str, int]]:
  """Returns (site, layer) of where it reads and of what it predicts."""
  found = []
  for end in ('', '_out'):
    layer = raw.get_or_none(f'hook_layer{end}', int, None)
    hook = details_lib.text(raw.values.get(f'hook_name{end}'))
    hook = hook.replace('{layer}', '{}' if layer is None else str(layer))
    found.append(details_lib.site_of(hook))
  return found[0], found[1]


def reads_centred(raw: hf_raw.Raw, site: str, *, is_transcoder: bool) -> bool:
  """Returns whether the SAE takes x - mean(x), of how its model was loaded.

  TransformerLens' center_writing_weights takes the mean out of all that is
  written to the residual stream, where the model's norms are LayerNorms; of
  other models it does nothing.

  Raises:
    errors.InputError: the activations of its model are none that ours has.
  """
  loading = raw.within('model_from_pretrained_kwargs')
  is_centred = loading.get_or_none('center_writing_weights', bool, False)
  # These change what lies at places other than a block's ends.
  folds = ('fold_ln', 'fold_value_biases', 'refactor_factored_attn_matrices')
  is_folded = [loading.get_or_none(key, bool, False) for key in folds]
  loading.refuse_others(_IDLE_LOADING)
  if any(is_folded) and site not in _CENTRED:
    raise errors.InputError(
      f'{loading.where} changes the activations at '
      f'{site or "an unknown site"} ({", ".join(folds)}); expected none of '
      'these.'
    )
  if not is_centred or site == 'attn_z':
    return False
  model = details_lib.text(raw.values.get('model_name')).lower()
  if _RMS_NORM.match(model):
    return False
  if is_transcoder or site not in _CENTRED or not _LAYER_NORM.match(model):
    raise errors.InputError(
      f'{loading.where}: center_writing_weights=true of {model or "a model"} '
      f'at {site or "an unknown site"} is not read; expected an SAE of '
      f'{", ".join(_CENTRED)} of GPT-2, GPT-Neo(X) or Pythia.'
    )
  return True


def refuse_others(raw: hf_raw.Raw) -> None:
  """Raises InputError for keys that are neither read nor idle."""
  raw.refuse_others(_IDLE)
