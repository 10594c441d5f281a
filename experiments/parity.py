"""Does our forward pass equal transformers' on a model and a text?

  python -m experiments.parity --model=models/smollm2-135m --text=novels.jsonl

Runs both (torch: eager, float32; it must be installed) on the same packed
sequences and prints the next-token loss of each, nats, and the largest
difference of logits relative to the largest logit. For a fine-tune of your own,
and for any family, before long work is built on it.
"""

import itertools

from absl import flags
import jax
from jax import numpy as jnp
import numpy as np

from experiments import launch
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import transformer
from jumprelu_jax.text import packing
from jumprelu_jax.text import sources
from jumprelu_jax.text import tokens as tokens_lib

_MODEL = flags.DEFINE_string('model', None, 'Model folder.', required=True)
_TEXT = flags.DEFINE_string('text', None, 'Source of text.', required=True)
_SEQUENCES = flags.DEFINE_integer('sequences', 16, 'Sequences to compare on.')
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens of a sequence.')


def pack(architecture):
  """Returns packed sequences of the text."""
  tokenizer = huggingface.load_tokenizer(_MODEL.value)
  (source,) = sources.parse(_TEXT.value)
  rows = packing.pack(
    tokens_lib.encode(sources.read(source), tokenizer),
    _LENGTH.value,
    bos_id=architecture.special_ids[0],
    pad_id=architecture.pad_id,
  )
  return np.stack(list(itertools.islice(rows, _SEQUENCES.value)))


def torch_logits():
  """Returns a function from tokens to transformers' logits."""
  import torch
  import transformers

  model = transformers.AutoModelForCausalLM.from_pretrained(
    _MODEL.value, dtype=torch.float32, attn_implementation='eager'
  ).eval()

  def run(tokens_BL):
    with torch.no_grad():
      return model(torch.from_numpy(tokens_BL).long()).logits.numpy()

  return run


def main():
  model = huggingface.load(_MODEL.value)
  special_ids = model.architecture.special_ids
  theirs = torch_logits()
  ours = jax.jit(transformer.logits)
  losses, counts, worst = np.zeros(2), 0.0, 0.0
  for tokens_L in pack(model.architecture):
    tokens_BL = tokens_L[None]
    pair = [ours(model, tokens_BL), theirs(tokens_BL)]
    for i, logits_BLV in enumerate(pair):
      loss_BL, counts_BL = lm_loss.next_token_loss(
        jnp.asarray(logits_BLV), tokens_BL, special_ids
      )
      losses[i] += float(jnp.sum(loss_BL * counts_BL))
    counts += float(jnp.sum(counts_BL))
    difference = np.abs(pair[0] - pair[1]).max() / np.abs(pair[1]).max()
    worst = max(worst, float(difference))
  ours_loss, theirs_loss = losses / counts
  print(
    f'{counts:,.0f} predictions: loss {ours_loss:.6f} nats, transformers '
    f'{theirs_loss:.6f}, difference {ours_loss - theirs_loss:+.1e}; logits '
    f'differ by at most {worst:.1e} of the largest'
  )


if __name__ == '__main__':
  launch.run(main)
