"""Tokens/s of a language model's forward pass up to a layer, ours and torch's.

  python -m experiments.benchmark.forward --model=models/smollm2-135m --layer=10

Each round times ours and then torch's (transformers, the layers after --layer
removed) in processes of their own, so that neither finds the other's threads
busy; both see the same machine, and the ratio is of one round. Prints a line a
round, then medians and the ratios' range.
"""

import json
import subprocess
import sys
import time

from absl import app
from absl import flags
import numpy as np

_MODEL = flags.DEFINE_string('model', None, 'Model folder.', required=True)
_LAYER = flags.DEFINE_integer('layer', 10, 'Stop after this layer.')
_SITE = flags.DEFINE_string('site', 'resid_post', 'Where ours stops.')
_SEQUENCES = flags.DEFINE_integer('sequences', 8, 'Sequences in a pass.')
_LENGTH = flags.DEFINE_integer('length', 256, 'Tokens of a sequence.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Rounds.')
_PASSES = flags.DEFINE_integer('passes', 8, 'Timed passes in a round.')
_ATTENTION = flags.DEFINE_string('attention', 'sdpa', "torch's attention.")
_ONLY = flags.DEFINE_enum('only', None, ['ours', 'torch'], 'One side, as JSON.')


def ours():
  """Returns a function that runs our forward pass."""
  import jax

  from jumprelu_jax.lm import huggingface
  from jumprelu_jax.lm import sites
  from jumprelu_jax.lm import transformer

  model = huggingface.load(_MODEL.value, num_layers=_LAYER.value + 1)
  where = (sites.Site(_SITE.value, _LAYER.value),)
  tap = jax.jit(lambda model, tokens: transformer.tap(model, tokens, where))
  return lambda tokens: jax.block_until_ready(tap(model, tokens))


def torchs():
  """Returns a function that runs transformers' forward pass."""
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(
    _MODEL.value, dtype=torch.float32, attn_implementation=_ATTENTION.value
  ).eval()
  model.layers = model.layers[: _LAYER.value + 1]

  def run(tokens):
    with torch.no_grad():
      model(torch.from_numpy(tokens), use_cache=False)

  return run


def measure(run):
  """Returns tokens/s of each pass, after three to warm up."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, 1000, (_SEQUENCES.value, _LENGTH.value))
  rates = []
  for _ in range(3 + _PASSES.value):
    began = time.perf_counter()
    run(tokens)
    rates.append(tokens.size / (time.perf_counter() - began))
  return rates[3:]


def in_process(side):
  """Returns the median rate of one side, measured in a new process."""
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.benchmark.forward', *sys.argv[1:]]
    + [f'--only={side}'],
    check=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  return float(np.median(json.loads(done.stdout.splitlines()[-1])))


def main(argv):
  del argv
  if _ONLY.value:
    side = {'ours': ours, 'torch': torchs}[_ONLY.value]
    print(json.dumps(measure(side())))
    return
  rounds = []
  for i in range(_ROUNDS.value):
    rounds.append((in_process('ours'), in_process('torch')))
    a, b = rounds[-1]
    print(
      f'round {i}: ours {a:,.0f} tokens/s, torch {b:,.0f}, ratio {a / b:.3f}'
    )
  a, b = np.asarray(rounds).T
  ratios = np.sort(a / b)
  print(
    f'median: ours {np.median(a):,.0f} tokens/s, torch {np.median(b):,.0f}; '
    f'ratio {np.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f} over '
    f'{len(ratios)} rounds)'
  )


if __name__ == '__main__':
  app.run(main)
