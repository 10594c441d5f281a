"""What a decoder-only language model is: sizes and choices, no arrays."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np

from jumprelu_jax import errors
from jumprelu_jax.lm import rope as rope_lib
from jumprelu_jax.lm import sites

#: Arrays that only some architectures have; the others always exist.
OPTIONAL = frozenset(
  {
    'head_VD', 'positions_CD', 'final_norm_bias_D',
    'attn_norm_bias_D', 'post_attn_norm_D', 'mlp_norm_bias_D',
    'post_mlp_norm_D', 'q_norm_K', 'k_norm_K', 'b_q_HK', 'b_k_GK', 'b_v_GK',
    'b_o_D', 'W_gate_DF', 'b_gate_F', 'b_up_F', 'b_down_D',
  }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A language model's sizes and choices.

  Attributes:
    model_type: Hugging Face's name of the family.
    vocab_size: V.
    d_model: D, size of the residual stream.
    d_mlp: F.
    num_layers: blocks.
    num_heads: H, query heads.
    num_kv_heads: G, key/value heads; divides H.
    head_dim: K.
    max_positions: C, longest sequence.
    norm: a name in `layers.NORMS`.
    norm_epsilon: of all norms.
    activation: a name in `layers.ACTIVATIONS`.
    attention_scale: factor of query-key products.
    optional: the names in OPTIONAL that this model has.
    ropes: rotary tables; empty where positions are learned.
    rope_of_layer: for each layer the index of its table.
    windows: for each layer how many positions a query sees, itself included;
      None sees all.
    embed_scale: factor of embeddings.
    attention_cap: soft-cap of attention scores, or None.
    logit_cap: soft-cap of logits, or None.
    is_parallel: attention and MLP both read the block's input.
    bos_id: starts a sequence; None if the family has no such token.
    pad_id: fills sequences up.
    special_ids: BOS, EOS, PAD and whatever else is no text.
  """

  model_type: str
  vocab_size: int
  d_model: int
  d_mlp: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  max_positions: int
  norm: str
  norm_epsilon: float
  activation: str
  attention_scale: float
  optional: frozenset[str]
  ropes: tuple[rope_lib.Rope, ...]
  rope_of_layer: tuple[int, ...]
  windows: tuple[int | None, ...]
  embed_scale: float = 1.0
  attention_cap: float | None = None
  logit_cap: float | None = None
  is_parallel: bool = False
  bos_id: int | None = None
  pad_id: int = 0
  special_ids: tuple[int, ...] = ()

  def sizes(self) -> dict[str, int]:
    """Returns the size of each letter in parameters' names."""
    return {
      'V': self.vocab_size,
      'C': self.max_positions,
      'D': self.d_model,
      'F': self.d_mlp,
      'H': self.num_heads,
      'G': self.num_kv_heads,
      'K': self.head_dim,
    }

  def site_dim(self, name: str) -> int:
    """Returns the size of the activations at a site (see `sites`)."""
    if name == 'attn_z':
      return self.num_heads * self.head_dim
    return self.d_model

  def check_site(self, where: sites.Site) -> None:
    """Raises InputError if the model has no such place."""
    if where.layer >= self.num_layers:
      raise errors.InputError(
        f'layer {where.layer} of {where} is not in the model; it has layers '
        f'0 to {self.num_layers - 1}.'
      )
    if self.is_parallel and where.name == 'resid_mid':
      raise errors.InputError(
        f'{where}: {self.model_type} adds attention and MLP in parallel, so '
        'nothing lies between them; use resid_pre or resid_post.'
      )

  def check_ids(
    self, ids: np.ndarray, word: Callable[[int], str | None] | None = None
  ) -> None:
    """Raises InputError if token ids have no embedding.

    JAX would silently take another token's. A tokenizer may have such ids:
    those of tokens that were added without resizing the model. As in
    transformers, it is an error to use one, not to have it.

    Args:
      ids: whole numbers of any shape.
      word: id → the token's text, for the message.
    """
    if not ids.size or 0 <= ids.min() <= ids.max() < self.vocab_size:
      return
    wrong = int(ids.min() if ids.min() < 0 else ids.max())
    text = word and wrong >= 0 and word(wrong)
    raise errors.InputError(
      f'token id {wrong}{f" ({text!r})" if text else ""} is not in the model, '
      f'which has embeddings for 0 to {self.vocab_size - 1}; give the '
      'tokenizer or token ids that the model was trained with, or a model '
      'that was resized to them.'
    )

  def cut(self, num_layers: int) -> Architecture:
    """Returns the architecture of the first layers alone."""
    return dataclasses.replace(
      self,
      num_layers=num_layers,
      rope_of_layer=self.rope_of_layer[:num_layers],
      windows=self.windows[:num_layers],
    )
