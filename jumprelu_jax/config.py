"""What a run is: small frozen dataclasses, checked before any work.

A recipe in `configs/` gives a `ConfigDict`; `RunConfig.from_config_dict` turns
it into these classes, once, and no `ConfigDict` travels further. Values
are checked by `config_checks`; `inputs.prepare` checks what needs a model or a
text to be opened. Lengths of training are in steps.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import json
import operator
import typing
from typing import Any

from jumprelu_jax import config_checks
from jumprelu_jax import errors

#: The path that stands for what the package ships, for models and texts alike.
EMBEDDED = 'embedded'


@dataclasses.dataclass(frozen=True)
class LMConfig:
  """The language model and the place in it.

  Attributes:
    path: Hugging Face folder, hub id such as 'google/gemma-2-2b', or
      'embedded'.
    revision: branch, tag or commit on the hub; '' is its default branch.
    dtype: of parameters and computation, 'float32' or 'bfloat16'; products of
      float32 are exact on every platform (`products`).
    site: a name in `lm.sites.SITES`.
    layer: zero-based index of the block.
    target_site: what a transcoder predicts; '' for SAEs.
    target_layer: its block; -1 takes `layer`.
  """

  path: str
  revision: str
  dtype: str
  site: str
  layer: int
  target_site: str
  target_layer: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """What the language model reads.

  Attributes:
    harvest: sources to harvest activations from (see `text.sources.parse`), or
      'embedded'.
    heldout: sources to evaluate on, or 'embedded'.
    context_length: tokens of a sequence, BOS included.
    packing: 'pack' fills sequences with documents, BOS between them;
      'document' gives each document a sequence of its own.
    bos_id: starts sequences; -1 takes the model's own.
    special_ids: tokens that are no text, besides the model's BOS, EOS and PAD.
  """

  harvest: str
  heldout: str
  context_length: int
  packing: str
  bos_id: int
  special_ids: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ActivationsConfig:
  """How activations are harvested.

  Attributes:
    mode: 'stored' harvests to disk and trains from there; 'live' runs the
      language model beside the training and stores nothing.
    store: folder or URL that `experiments.harvest` has filled; '' harvests into
      the run's own folder.
    sites: places to harvest in one pass, such as 'resid_post/20'; () takes
      the one of `lm`.
    sequences: sequences to harvest from at most; 0 takes the whole text.
    sequences_per_batch: sequences in one forward pass.
    bucket_rows: rows that are shuffled together, held in memory and stored as
      one shard; no more than these.
    dtype: of the rows, 'float32' or 'bfloat16'.
    format: of the shards, 'npy' or 'zarr3'.
    max_norm_multiple: drops positions whose norm is more than this multiple of
      the median; 0 drops none.
    prefetch_batches: batches that a thread keeps ready for training; 0 has no
      thread, so that model and training take turns.
  """

  mode: str
  store: str
  sites: tuple[str, ...]
  sequences: int
  sequences_per_batch: int
  bucket_rows: int
  dtype: str
  format: str
  max_norm_multiple: float
  prefetch_batches: int


@dataclasses.dataclass(frozen=True)
class SAEConfig:
  """The sparse autoencoder.

  Attributes:
    architecture: a name in `architectures.ARCHITECTURES`.
    num_latents: M.
    k: latents of a row that fire in the TopK family; fewer than M.
    selection: 'exact', or 'approximate' for TopK on TPUs.
    initial_threshold: in units of normalised activations.
    initial_encoder_norm: of the encoder's columns.
    initial_decoder_norm: of the decoder's rows; 1 where it is constrained.
    initial_b_dec: 'zeros', or the 'mean' or 'geometric_median' of the first
      rows.
    initial_frequency: sets b_enc so that each latent fires on this share of the
      first rows; 0 has zeros.
    use_pre_encoder_bias: subtract b_dec from the encoder's input.
    compute_dtype: of the inputs of matrix products; parameters are float32.
    capacity: latents of a row that a sparse step has room for; a step in which
      a row needs more is dense. 0 has dense steps only, -1 what pays off.
  """

  architecture: str
  num_latents: int
  k: int
  selection: str
  initial_threshold: float
  initial_encoder_norm: float
  initial_decoder_norm: float
  initial_b_dec: str
  initial_frequency: float
  use_pre_encoder_bias: bool
  compute_dtype: str
  capacity: int


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """The loss.

  Attributes:
    name: names in `objectives.OBJECTIVES`, joined by +.
    sparsity_coeff: lambda.
    sparsity_warmup_steps: lambda rises linearly from 0 over these steps.
    estimator: a name in `ops.ESTIMATORS`: what the jumps train.
    kernel: a name in `kernels.KERNELS`.
    bandwidth: epsilon, in units of normalised activations.
    target_l0: of 'target_l0' and 'target_mean_l0'.
    frequency_scale: p0 of 'quadratic_frequency'.
    tanh_scale: c of 'tanh'.
    pre_activation_coeff: lambda_P of 'pre_activation'.
    aux_k_coeff: alpha of 'aux_k'.
    aux_k: dead latents that 'aux_k' takes of a row; about half of d_model.
    dead_after_tokens: without firing in as many, a latent counts as dead in
      training.
    prefixes: latents of each nested SAE of Matryoshka, up to all.
    components: names in `components.OPTIONAL`.
    controller_gain: of 'l0_controller', how far log lambda follows the error.
    controller_rate: of 'l0_controller', how much of it each step adds up.
    window_rows: of 'adaptive_bandwidth', rows of a batch in each window.
  """

  name: str
  sparsity_coeff: float
  sparsity_warmup_steps: int
  estimator: str
  kernel: str
  bandwidth: float
  target_l0: float
  frequency_scale: float
  tanh_scale: float
  pre_activation_coeff: float
  aux_k_coeff: float
  aux_k: int
  dead_after_tokens: int
  prefixes: tuple[int, ...]
  components: tuple[str, ...]
  controller_gain: float
  controller_rate: float
  window_rows: float


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam and its learning rates.

  Attributes:
    learning_rate: of weights and biases.
    threshold_learning_rate: of the thresholds' parameters.
    beta1: decay of the first moment; 0 stores none.
    beta2: decay of the second moment.
    epsilon: Adam's epsilon.
    warmup_steps: cosine warm-up from a tenth of the learning rate.
    decay: 'cosine' or 'linear'.
    decay_fraction: share of the run, at its end, in which the rate falls to 0.
    max_gradient_norm: gradients of a larger norm, of all parameters together,
      are scaled down to it; 0 clips none.
    threshold_gradient_decay: of an average over steps of the thresholds'
      gradients; 0 takes each step's own.
    is_fused: whether the decoder is updated by one kernel on TPUs (`fused`);
      elsewhere it is interpreted, which is slow. Not measured on a TPU yet.
  """

  learning_rate: float
  threshold_learning_rate: float
  beta1: float
  beta2: float
  epsilon: float
  warmup_steps: int
  decay: str
  decay_fraction: float
  max_gradient_norm: float
  threshold_gradient_decay: float
  is_fused: bool


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The training loop.

  Attributes:
    steps: optimizer steps.
    batch_size: rows of activations in a step.
    steps_per_log: steps that one logged record averages over.
    steps_per_checkpoint: a multiple of steps_per_log.
    stream_seed: of the order of rows; -1 takes the run's. SAEs of several seeds
      can be trained together only if it is one for all.
    checkpoints_kept: the last ones, of each SAE; a damaged one is passed over.
    max_bad_batches: batches with a loss or a gradient that is not finite that
      may be left out, of each SAE; one more ends the run.
  """

  steps: int
  batch_size: int
  steps_per_log: int
  steps_per_checkpoint: int
  stream_seed: int
  checkpoints_kept: int
  max_bad_batches: int


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """Evaluation on held-out text.

  Attributes:
    sequences: sequences to evaluate on at most; 0 takes the whole text.
    sequences_per_batch: sequences in one forward pass.
    splice_special: replace the activations of special positions too; they are
      counted in no metric either way.
    importance_sequences: sequences on which `importance_uniformity` is
      measured, which needs a backward pass; 0 leaves it out.
  """

  sequences: int
  sequences_per_batch: int
  splice_special: bool
  importance_sequences: int


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """The device mesh: batch over `data`, latents over `latent`.

  Attributes:
    data: devices along the batch.
    latent: devices along the latents.
    sweep: groups of data * latent devices, each with its share of the SAEs that
      a sweep trains together.
    divides_optimizer: whether Adam's moments lie over `data` as well as over
      `latent`: less memory, and a gather of the updated rows at each step.
  """

  data: int
  latent: int
  sweep: int
  divides_optimizer: bool


@dataclasses.dataclass(frozen=True)
class SweepConfig:
  """What `experiments.sweep` runs over.

  Attributes:
    saes: what to train, 'architecture/objective/sparsity/…' each, such as
      'jumprelu/l0/1e-3/2e-3' or 'topk/aux_k/16/32'; one SAE for each sparsity,
      which is `sae.k` in the TopK family and `objective.sparsity_coeff`
      elsewhere.
    over: what else each of them is trained with, 'key=value/value/…', such as
      'seed=0/1/2' or 'optimizer.learning_rate=1e-3/3e-3'; all combinations of
      several. With seeds, the order of rows stays the config's.
  """

  saes: tuple[str, ...]
  over: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """Everything that decides a run's numbers; `seed` reaches all randomness."""

  seed: int
  lm: LMConfig
  text: TextConfig
  activations: ActivationsConfig
  sae: SAEConfig
  objective: ObjectiveConfig
  optimizer: OptimizerConfig
  train: TrainConfig
  evaluation: EvaluationConfig
  mesh: MeshConfig
  sweep: SweepConfig

  @classmethod
  def from_config_dict(cls, config: Mapping[str, Any]) -> RunConfig:
    """Builds and checks a RunConfig.

    Args:
      config: nested mappings (`ConfigDict.to_dict()`, or JSON read back).

    Raises:
      errors.InputError: a key is unknown or missing, a value has the wrong type
        or is out of its range, or two values do not fit together.
    """
    run = _build(cls, config, prefix='config')
    config_checks.check(run)
    return run

  @property
  def stream_seed(self) -> int:
    """The seed of the order of rows."""
    return self.seed if self.train.stream_seed < 0 else self.train.stream_seed

  @property
  def sequences_per_bucket(self) -> int:
    """How many sequences' rows are shuffled together, and make a shard."""
    return self.activations.bucket_rows // self.text.context_length

  def to_dict(self) -> dict[str, Any]:
    """Returns nested plain dicts, as they are stored as JSON."""
    return json.loads(json.dumps(dataclasses.asdict(self)))

  def with_values(self, values: Mapping[str, Any]) -> RunConfig:
    """Returns the config with some values changed, checked as a new one.

    Args:
      values: by dotted key, such as {'objective.sparsity_coeff': 1e-3}.

    Raises:
      errors.InputError: as `from_config_dict`.
    """
    raw = self.to_dict()
    for key, value in values.items():
      *groups, name = key.split('.')
      functools.reduce(operator.getitem, groups, raw)[name] = value
    return RunConfig.from_config_dict(raw)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'sae.num_latents': 16384, ...} of nested mappings."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def _build(cls, config, prefix):
  """Builds one dataclass from a mapping; recurses into nested ones."""
  types = typing.get_type_hints(cls)
  for key in config:
    if key not in types:
      known = [f'{prefix}.{name}' for name in types]
      raise errors.InputError(_unknown_key_message(f'{prefix}.{key}', known))
  missing = [f'{prefix}.{name}' for name in types if name not in config]
  if missing:
    raise errors.InputError(f'missing config keys: {", ".join(missing)}.')
  return cls(
    **{
      key: _convert(types[key], config[key], f'{prefix}.{key}')
      for key in config
    }
  )


def _unknown_key_message(key: str, known: list[str]) -> str:
  """Returns the one line that an unknown config key gets."""
  close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
  hint = f'did you mean {close[0]}?' if close else 'known keys: '
  if not close:
    hint += f'{", ".join(sorted(known))}.'
  return f'{key} is not a config key; {hint}'


def _convert(expected, value, name):
  """Checks one value's type; lets an int stand for a float."""
  if dataclasses.is_dataclass(expected):
    if not isinstance(value, Mapping):
      raise errors.InputError(f'{name}={value!r}: expected a group of keys.')
    return _build(expected, value, name)
  if typing.get_origin(expected) is tuple:
    element = typing.get_args(expected)[0]
    if not isinstance(value, tuple | list):
      raise errors.InputError(
        f'{name}={value!r}: expected several {element.__name__}s, such as '
        f'--{name}=1,2.'
      )
    items = tuple(_convert(element, item, name) for item in value)
    if element is str:  # --config.activations.sites=a,b comes as one word
      return tuple(word for item in items for word in item.split(','))
    return items
  if expected is float and type(value) is int:
    value = float(value)
  if type(value) is not expected:
    raise errors.InputError(
      f'{name}={value!r} has type {type(value).__name__}; expected '
      f'{expected.__name__}.'
    )
  return value
