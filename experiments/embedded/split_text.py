"""Makes the embedded text and the training text of the embedded LM.

  python -m experiments.embedded.split_text \
      --source=novels.jsonl.gz,sotu.jsonl.gz,… --lm_text=runs/lm/train.jsonl.gz

Each source's documents are dealt by their index: one in 50 is held out, the
others train the language model. Every second training document is shipped with
the package to harvest activations from, as are all the held-out ones to
evaluate on. Nothing is random: the same sources give the same files.
"""

import gzip
import json
import lzma
import os
import pathlib

from absl import app
from absl import flags

from jumprelu_jax import embedded

_SOURCE = flags.DEFINE_list(
  'source', None, 'JSON-lines files of text.', required=True
)
_LM_TEXT = flags.DEFINE_string(
  'lm_text', None, 'Written: what the LM trains on (.jsonl.gz).', required=True
)

HELDOUT_EVERY = 50
SHIPPED_EVERY = 2


def split(documents):
  """Returns (train, heldout): one document in HELDOUT_EVERY is held out."""
  heldout = documents[HELDOUT_EVERY // 2 :: HELDOUT_EVERY]
  train = [
    document
    for i, document in enumerate(documents)
    if i % HELDOUT_EVERY != HELDOUT_EVERY // 2
  ]
  return train, heldout


def interleave(lists):
  """Deals several lists out evenly, so that any prefix mixes all of them."""
  position = [
    ((i + 0.5) / len(items), k, item)
    for k, items in enumerate(lists)
    for i, item in enumerate(items)
  ]
  return [item for _, _, item in sorted(position, key=lambda p: p[:2])]


def write(path, documents):
  """Writes documents as compressed JSON lines; same input, same bytes."""
  os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
  data = ''.join(json.dumps(d, ensure_ascii=False) + '\n' for d in documents)
  if str(path).endswith('.xz'):
    blob = lzma.compress(data.encode(), preset=9 | lzma.PRESET_EXTREME)
  else:
    blob = gzip.compress(data.encode(), mtime=0)
  pathlib.Path(path).write_bytes(blob)
  print(f'{path}: {len(documents)} documents, {len(blob):,} bytes')


def main(argv):
  del argv
  train, heldout, shipped = [], [], []
  for source in _SOURCE.value:
    with gzip.open(source, 'rt', encoding='utf-8') as lines:
      documents = [json.loads(line) for line in lines]
    source_train, source_heldout = split(documents)
    train.append(source_train)
    heldout.append(source_heldout)
    shipped.append(source_train[::SHIPPED_EVERY])
  write(_LM_TEXT.value, interleave(train))
  write(embedded.HARVEST_TEXT, interleave(shipped))
  write(embedded.HELDOUT_TEXT, interleave(heldout))


if __name__ == '__main__':
  app.run(main)
