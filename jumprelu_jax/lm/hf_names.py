"""safetensors ↔ parameters: names for each family, and how arrays are cut.

An array of ours is an array of theirs with its axes split, reordered or, where
they fuse several, picked out. Both sides are said in letters: our `W_q_DHK` is
cut from Llama's `q_proj.weight` of axes 'HK,D' (rows are heads times head dim),
from GPT-NeoX's fused one of 'HXK,D' at component X = 0. From letters follow the
shape that the file must have, the slice of the file that holds a slice of ours,
and how to write it back.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Cut:
  """Where an array of ours lies in a file.

  Attributes:
    name: of the tensor; '{}' stands for the layer.
    axes: letters of the file's axes, each a product, separated by commas. X is
      the axis of fused components.
    component: index on X.
  """

  name: str
  axes: str
  component: int = 0

  def file_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the shape that the tensor must have."""
    return tuple(
      int(np.prod([sizes[a] for a in axis])) for axis in self.axes.split(',')
    )

  def read(
    self,
    read_slice: Callable[[tuple[slice, ...]], np.ndarray],
    letters: str,
    index: tuple[slice, ...],
    sizes: Mapping[str, int],
  ) -> np.ndarray:
    """Reads a slice of our array, and little more of the file than that.

    Args:
      read_slice: reads a slice of the tensor.
      letters: of our array.
      index: the slice of our array.
      sizes: size of each letter, X included.
    """
    wanted = {
      a: range(sizes[a])[s] for a, s in zip(letters, index, strict=True)
    }
    wanted['X'] = range(self.component, self.component + 1)
    bounds, shape, picks = [], [], []
    for axis in self.axes.split(','):
      # Rows of a product lie together along its first letter, and along its
      # second where one of the first is wanted.
      start, stop = 0, int(np.prod([sizes[a] for a in axis]))
      for depth, letter in enumerate(axis, 1):
        rest = axis[depth:]
        inner = (stop - start) // sizes[letter]
        part = wanted[letter]
        start, stop = start + part.start * inner, start + part.stop * inner
        shape.append(len(part))
        picks.append(slice(None))
        if len(part) > 1:
          break
      bounds.append(slice(start, stop))
      shape += [sizes[a] for a in rest]
      picks += [slice(wanted[a].start, wanted[a].stop) for a in rest]
    array = read_slice(tuple(bounds)).reshape(shape)[tuple(picks)]
    axes = self.axes.replace(',', '')
    if 'X' in axes:
      array = array.squeeze(axes.index('X'))
      axes = axes.replace('X', '')
    return array.transpose([axes.index(a) for a in letters])

  def write(self, array: np.ndarray, letters: str) -> np.ndarray:
    """Returns the file's tensor of an array of ours; no fused ones."""
    order = [letters.index(a) for a in self.axes.replace(',', '')]
    lengths = [len(axis) for axis in self.axes.split(',')]
    moved = array.transpose(order)
    shape, start = [], 0
    for length in lengths:
      shape.append(int(np.prod(moved.shape[start : start + length])))
      start += length
    return np.ascontiguousarray(moved.reshape(shape))


_LLAMA_LIKE = {
  'embed_VD': Cut('model.embed_tokens.weight', 'V,D'),
  'final_norm_D': Cut('model.norm.weight', 'D'),
  'head_VD': Cut('lm_head.weight', 'V,D'),
} | {
  name: Cut(f'model.layers.{{}}.{tensor}', axes)
  for name, tensor, axes in (
    ('attn_norm_D', 'input_layernorm.weight', 'D'),
    ('W_q_DHK', 'self_attn.q_proj.weight', 'HK,D'),
    ('W_k_DGK', 'self_attn.k_proj.weight', 'GK,D'),
    ('W_v_DGK', 'self_attn.v_proj.weight', 'GK,D'),
    ('W_o_HKD', 'self_attn.o_proj.weight', 'D,HK'),
    ('b_q_HK', 'self_attn.q_proj.bias', 'HK'),
    ('b_k_GK', 'self_attn.k_proj.bias', 'GK'),
    ('b_v_GK', 'self_attn.v_proj.bias', 'GK'),
    ('b_o_D', 'self_attn.o_proj.bias', 'D'),
    ('q_norm_K', 'self_attn.q_norm.weight', 'K'),
    ('k_norm_K', 'self_attn.k_norm.weight', 'K'),
    ('mlp_norm_D', 'post_attention_layernorm.weight', 'D'),
    ('W_gate_DF', 'mlp.gate_proj.weight', 'F,D'),
    ('W_up_DF', 'mlp.up_proj.weight', 'F,D'),
    ('W_down_FD', 'mlp.down_proj.weight', 'D,F'),
    ('b_gate_F', 'mlp.gate_proj.bias', 'F'),
    ('b_up_F', 'mlp.up_proj.bias', 'F'),
    ('b_down_D', 'mlp.down_proj.bias', 'D'),
  )
}
# Gemma has a norm after each sub-layer too, and so another name for the one
# before the MLP.
_GEMMA = _LLAMA_LIKE | {
  name: Cut(f'model.layers.{{}}.{tensor}.weight', 'D')
  for name, tensor in (
    ('post_attn_norm_D', 'post_attention_layernorm'),
    ('mlp_norm_D', 'pre_feedforward_layernorm'),
    ('post_mlp_norm_D', 'post_feedforward_layernorm'),
  )
}
_GPT_NEOX = {
  'embed_VD': Cut('gpt_neox.embed_in.weight', 'V,D'),
  'final_norm_D': Cut('gpt_neox.final_layer_norm.weight', 'D'),
  'final_norm_bias_D': Cut('gpt_neox.final_layer_norm.bias', 'D'),
  'head_VD': Cut('embed_out.weight', 'V,D'),
} | {
  name: Cut(f'gpt_neox.layers.{{}}.{tensor}', axes, component)
  for name, tensor, axes, component in (
    ('attn_norm_D', 'input_layernorm.weight', 'D', 0),
    ('attn_norm_bias_D', 'input_layernorm.bias', 'D', 0),
    ('W_q_DHK', 'attention.query_key_value.weight', 'HXK,D', 0),
    ('W_k_DGK', 'attention.query_key_value.weight', 'GXK,D', 1),
    ('W_v_DGK', 'attention.query_key_value.weight', 'GXK,D', 2),
    ('b_q_HK', 'attention.query_key_value.bias', 'HXK', 0),
    ('b_k_GK', 'attention.query_key_value.bias', 'GXK', 1),
    ('b_v_GK', 'attention.query_key_value.bias', 'GXK', 2),
    ('W_o_HKD', 'attention.dense.weight', 'D,HK', 0),
    ('b_o_D', 'attention.dense.bias', 'D', 0),
    ('mlp_norm_D', 'post_attention_layernorm.weight', 'D', 0),
    ('mlp_norm_bias_D', 'post_attention_layernorm.bias', 'D', 0),
    ('W_up_DF', 'mlp.dense_h_to_4h.weight', 'F,D', 0),
    ('b_up_F', 'mlp.dense_h_to_4h.bias', 'F', 0),
    ('W_down_FD', 'mlp.dense_4h_to_h.weight', 'D,F', 0),
    ('b_down_D', 'mlp.dense_4h_to_h.bias', 'D', 0),
  )
}
_GPT2 = {
  'embed_VD': Cut('transformer.wte.weight', 'V,D'),
  'positions_CD': Cut('transformer.wpe.weight', 'C,D'),
  'final_norm_D': Cut('transformer.ln_f.weight', 'D'),
  'final_norm_bias_D': Cut('transformer.ln_f.bias', 'D'),
  'head_VD': Cut('lm_head.weight', 'V,D'),
} | {
  name: Cut(f'transformer.h.{{}}.{tensor}', axes, component)
  for name, tensor, axes, component in (
    ('attn_norm_D', 'ln_1.weight', 'D', 0),
    ('attn_norm_bias_D', 'ln_1.bias', 'D', 0),
    ('W_q_DHK', 'attn.c_attn.weight', 'D,XHK', 0),
    ('W_k_DGK', 'attn.c_attn.weight', 'D,XGK', 1),
    ('W_v_DGK', 'attn.c_attn.weight', 'D,XGK', 2),
    ('b_q_HK', 'attn.c_attn.bias', 'XHK', 0),
    ('b_k_GK', 'attn.c_attn.bias', 'XGK', 1),
    ('b_v_GK', 'attn.c_attn.bias', 'XGK', 2),
    ('W_o_HKD', 'attn.c_proj.weight', 'HK,D', 0),
    ('b_o_D', 'attn.c_proj.bias', 'D', 0),
    ('mlp_norm_D', 'ln_2.weight', 'D', 0),
    ('mlp_norm_bias_D', 'ln_2.bias', 'D', 0),
    ('W_up_DF', 'mlp.c_fc.weight', 'D,F', 0),
    ('b_up_F', 'mlp.c_fc.bias', 'F', 0),
    ('W_down_FD', 'mlp.c_proj.weight', 'F,D', 0),
    ('b_down_D', 'mlp.c_proj.bias', 'D', 0),
  )
}
#: model_type → our array's name → where it lies.
NAMES = {
  'gemma2': _GEMMA,
  'gemma3_text': _GEMMA,
  'gpt2': _GPT2,
  'gpt_neox': _GPT_NEOX,
  'llama': _LLAMA_LIKE,
  'qwen2': _LLAMA_LIKE,
  'qwen3': _LLAMA_LIKE,
}
#: (prefix in NAMES, other spellings in files): multimodal Gemma 3 keeps its
#: language model under one of two names, and the hub's GPT-2 has none.
PREFIXES = {
  'gemma3_text': ('model.', ('model.language_model.', 'language_model.model.')),
  'gpt2': ('transformer.', ('',)),
}
#: Tensors that a file may hold and a language model does not need: tables that
#: are computed, masks that older versions saved, and other modalities.
IGNORED = re.compile(
  r'rotary_emb\.inv_freq$|attn\.(masked_)?bias$|attention\.(masked_)?bias$'
  r'|^(model\.)?(vision_tower|multi_modal_projector)\.'
)
