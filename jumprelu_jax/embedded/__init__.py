"""The embedded default: a small language model and text, shipped as data.

`experiments/embedded/` made both; the model card beside the weights says how.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent
LM = _HERE / 'lm'
HARVEST_TEXT = _HERE / 'text' / 'harvest.jsonl.xz'
HELDOUT_TEXT = _HERE / 'text' / 'heldout.jsonl.xz'
SAE = _HERE / 'sae'
