"""What is measured: each case yields lines, the one asked for last."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator

from experiments.benchmark import shapes
from experiments.benchmark import steps
from experiments.benchmark import streams
from experiments.benchmark import timing

#: Cases by name.
CASES: dict[str, Callable[[shapes.Shape], Iterator[timing.Line]]] = {
  'step': steps.step,
  'sparse': steps.sparse,
  'sweep': steps.sweep,
  'store': streams.store,
  'harvest': streams.harvest,
}
