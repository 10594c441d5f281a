"""Trains the embedded language model; resumable and reproducible.

  python -m experiments.embedded.train_lm --lm_text=runs/lm/train.jsonl.gz \
      --workdir=runs/lm

Makes a byte-level BPE tokenizer from the text, trains a small Gemma 2 on it,
and writes a Hugging Face folder with a model card to --out. Killed and started
again with the same command, it goes on from its last checkpoint.
"""

import functools
import json
import os
import pathlib
import time

from absl import app
from absl import flags
import flax.struct
import jax
from jax import numpy as jnp
import numpy as np
import optax
import tokenizers

from jumprelu_jax import checkpoint
from jumprelu_jax import embedded
from jumprelu_jax import seeds
from jumprelu_jax.lm import gemma2
from jumprelu_jax.lm import huggingface
from jumprelu_jax.lm import loss as lm_loss
from jumprelu_jax.lm import transformer
from jumprelu_jax.text import packing
from jumprelu_jax.text import sources
from jumprelu_jax.text import tokens as tokens_lib

_LM_TEXT = flags.DEFINE_string(
  'lm_text', str(embedded.HARVEST_TEXT), 'JSON-lines file to train on.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Tokens and checkpoints.', required=True
)
_OUT = flags.DEFINE_string('out', str(embedded.LM), 'Folder to write.')
_STEPS = flags.DEFINE_integer('steps', 3000, 'Optimizer steps.')
_ROWS = flags.DEFINE_integer('rows', 32, 'Sequences in a step.')
_LR = flags.DEFINE_float('lr', 0.02, "Muon's peak learning rate.")
_ADAM_LR = flags.DEFINE_float(
  'adam_lr', 0.004, 'Peak learning rate of embedding and norms.'
)
_SEED = flags.DEFINE_integer('seed', 0, 'Seeds parameters and data order.')

VOCAB_SIZE = 4096
CONTEXT = 128
ARCHITECTURE = gemma2.architecture(
  vocab_size=VOCAB_SIZE,
  hidden_size=128,
  intermediate_size=512,
  num_hidden_layers=4,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  max_position_embeddings=CONTEXT,
  sliding_window=64,
  query_pre_attn_scalar=32.0,
  rms_norm_eps=1e-6,
)
STEPS_PER_CHECKPOINT = 200
WARMUP_STEPS = 60


@flax.struct.dataclass
class State:
  model: transformer.Transformer
  opt_state: optax.OptState


def train_tokenizer(documents):
  """Returns a byte-level BPE tokenizer; digits are pieces of their own."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  special = ['<pad>', '<eos>', '<bos>']  # ids 0, 1, 2 as in Gemma
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=VOCAB_SIZE,
    special_tokens=special,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(documents, trainer)
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='<bos> $A', special_tokens=[('<bos>', ARCHITECTURE.bos_id)]
  )
  return tokenizer


def pack(documents, tokenizer):
  """Returns packed sequences of some documents."""
  rows = packing.pack(
    tokens_lib.encode(documents, tokenizer),
    CONTEXT,
    bos_id=ARCHITECTURE.bos_id,
    pad_id=ARCHITECTURE.pad_id,
  )
  return np.stack(list(rows))


def prepare(workdir):
  """Returns (tokenizer, tokens_NL), made once and kept in the workdir."""
  tokenizer_path = workdir / 'tokenizer.json'
  tokens_path = workdir / 'tokens.npy'
  if not tokens_path.exists():
    documents = list(sources.read(sources.Source(_LM_TEXT.value)))
    tokenizer = train_tokenizer(documents)
    tokenizer.save(str(tokenizer_path))
    tokens_NL = pack(documents, tokenizer)
    np.save(workdir / 'tmp.npy', tokens_NL)
    os.replace(workdir / 'tmp.npy', tokens_path)
  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
  return tokenizer, np.load(tokens_path)


def make_optimizer(steps):
  """Muon for the blocks' matrices, Adam for embedding and norms."""

  def schedule(peak):
    return optax.warmup_cosine_decay_schedule(
      0.0, peak, WARMUP_STEPS, steps, end_value=0.05 * peak
    )

  def muon_dimensions(params):
    # Blocks are stacked, and heads are two axes of a matrix's one.
    matrices = {
      'W_q_DHK': (1, (2, 3)), 'W_k_DGK': (1, (2, 3)), 'W_v_DGK': (1, (2, 3)),
      'W_o_HKD': ((1, 2), 3), 'W_gate_DF': (1, 2), 'W_up_DF': (1, 2),
      'W_down_FD': (1, 2),
    }  # fmt: skip

    def of_leaf(path, _):
      axes = matrices.get(path[-1].name)
      return axes and optax.contrib.MuonDimensionNumbers(*axes)

    return jax.tree_util.tree_map_with_path(of_leaf, params)

  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.contrib.muon(
      schedule(_LR.value),
      adam_learning_rate=schedule(_ADAM_LR.value),
      adam_b2=0.99,
      muon_weight_dimension_numbers=muon_dimensions,
    ),
  )


def rows_of_step(step, num_rows, rows, seed):
  """Returns the row indices of a step: a permutation for each epoch."""
  steps_per_epoch = num_rows // rows
  epoch, position = divmod(step, steps_per_epoch)
  order = np.random.default_rng([seed, epoch]).permutation(num_rows)
  return order[position * rows : (position + 1) * rows]


def mean_loss(model, tokens_BL):
  """Mean next-token loss in nats over the predictions that count."""
  special = model.architecture.special_ids
  loss_BL, counts_BL = lm_loss.next_token_loss(
    transformer.logits(model, tokens_BL), tokens_BL, special
  )
  return jnp.sum(loss_BL * counts_BL) / jnp.sum(counts_BL)


@functools.partial(jax.jit, static_argnames='tx', donate_argnums=0)
def train_step(state, tokens_BL, *, tx):
  loss, grads = jax.value_and_grad(mean_loss)(state.model, tokens_BL)
  updates, opt_state = tx.update(grads, state.opt_state, state.model)
  return State(optax.apply_updates(state.model, updates), opt_state), loss


def heldout_loss(model, tokenizer):
  """Returns (nats per token, bits per character, tokens) on held-out text."""
  heldout = sources.Source(str(embedded.HELDOUT_TEXT))
  documents = list(sources.read(heldout))
  tokens_NL = pack(documents, tokenizer)
  special = ARCHITECTURE.special_ids

  @jax.jit
  def sums(model, tokens_BL):
    loss_BL, counts_BL = lm_loss.next_token_loss(
      transformer.logits(model, tokens_BL), tokens_BL, special
    )
    return jnp.sum(loss_BL * counts_BL), jnp.sum(counts_BL)

  total, count = np.sum(
    [
      np.asarray(sums(model, tokens_NL[i : i + 32]), np.float64)
      for i in range(0, len(tokens_NL), 32)
    ],
    axis=0,
  )
  characters = sum(map(len, documents))
  tokens = packing.is_text(tokens_NL, special).sum()
  nats = total / count
  bits_per_character = nats * tokens / characters / np.log(2)
  return float(nats), float(bits_per_character), int(tokens)


def model_card(result):
  """Returns the model card that is shipped beside the weights."""
  return f"""# The embedded language model

A small language model with Gemma 2's architecture, made for `jumprelu_jax` so
that its default job needs no download. It knows the English of its training
text and nothing else; it is a subject for experiments, not a source of text.

| | |
| --- | --- |
| architecture | Gemma 2: {ARCHITECTURE.num_layers} layers, d_model \
{ARCHITECTURE.d_model}, {ARCHITECTURE.num_heads} heads of \
{ARCHITECTURE.head_dim} ({ARCHITECTURE.num_kv_heads} key/value heads), MLP \
width {ARCHITECTURE.d_mlp}, context {CONTEXT}, sliding window \
{ARCHITECTURE.windows[0]} on even layers |
| parameters | {result['parameters']:,}, bfloat16 |
| tokenizer | byte-level BPE, {VOCAB_SIZE:,} pieces, digits apart; `<pad>` 0, \
`<eos>` 1, `<bos>` 2 |
| training text | State of the Union addresses, six novels by Jane Austen and \
Moby-Dick, World English Bible, CIA World Factbook, Jargon File: public domain \
or CC0; {result['training_tokens']:,} tokens |
| training | {result['steps']:,} steps of {_ROWS.value} sequences of \
{CONTEXT}: {result['tokens_seen']:,} tokens seen; Muon for the \
blocks' matrices (peak {_LR.value:g}), Adam for embedding and norms \
(peak {_ADAM_LR.value:g}), cosine decay, float32, seed {_SEED.value} |
| held out | one document in 50 of each source, \
{result['heldout_tokens']:,} tokens, never trained on |
| held-out loss | {result['heldout_nats_per_token']:.3f} nats/token, \
{result['heldout_bits_per_character']:.3f} bits/character (these weights, \
float32 arithmetic) |

Made by `experiments/embedded/split_text.py` and
`experiments/embedded/train_lm.py`; the text that is shipped beside the model
(`../text`) is every second training document, to harvest activations from, and
all held-out ones, to evaluate on.
"""


def main(argv):
  del argv
  seeds.check('--seed', _SEED.value)
  workdir = pathlib.Path(_WORKDIR.value)
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer, tokens_NL = prepare(workdir)
  print(f'{tokens_NL.size:,} training tokens', flush=True)
  tx = make_optimizer(_STEPS.value)
  model = transformer.init(ARCHITECTURE, seeds.key(_SEED.value))
  state = State(model, tx.init(model))
  checkpointer = checkpoint.Checkpointer(workdir / 'checkpoints')
  start = max(checkpointer.steps(), default=0)
  if start:
    state = checkpointer.restore(start, state)
  losses, began = [], time.time()
  for step in range(start, _STEPS.value):
    rows = rows_of_step(step, len(tokens_NL), _ROWS.value, _SEED.value)
    state, loss = train_step(state, jnp.asarray(tokens_NL[rows]), tx=tx)
    losses.append(loss)
    done = step + 1
    if done % 50 == 0 or done == _STEPS.value:
      rate = len(losses) * _ROWS.value * CONTEXT / (time.time() - began)
      mean = float(np.mean(jax.device_get(losses)))
      print(f'step {done}: loss {mean:.3f} nats, {rate:,.0f} tokens/s',
            flush=True)  # fmt: skip
      losses, began = [], time.time()
    if done % STEPS_PER_CHECKPOINT == 0 or done == _STEPS.value:
      checkpointer.save(done, state)
  checkpointer.close()
  # What is shipped is measured: the weights as rounded to bfloat16.
  huggingface.save(state.model, tokenizer, _OUT.value)
  nats, bits, tokens = heldout_loss(huggingface.load(_OUT.value), tokenizer)
  result = {
    'parameters': sum(p.size for p in jax.tree.leaves(state.model)),
    'steps': _STEPS.value,
    'tokens_seen': _STEPS.value * _ROWS.value * CONTEXT,
    'training_tokens': int(tokens_NL.size),
    'heldout_tokens': tokens,
    'heldout_nats_per_token': round(nats, 4),
    'heldout_bits_per_character': round(bits, 4),
  }
  pathlib.Path(_OUT.value, 'README.md').write_text(model_card(result))
  print(json.dumps(result))
  (workdir / 'result.json').write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
  app.run(main)
