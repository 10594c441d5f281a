"""Training curves: JSON lines, and the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib

from jumprelu_jax import whole


class CurveWriter:
  """Appends records of scalars by step to a run's folder.

  Writes `metrics.jsonl` and `tensorboard/`.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    records: Sequence[Mapping[str, float]] = (),
    first_step: int = 0,
  ):
    """Writes the records that there are, and forgets all that was there.

    Args:
      folder: of the run.
      records: until the step from which the run goes on.
      first_step: that step; no record stands twice.
    """
    import tensorboardX  # seconds to import where torch is installed

    self._path = pathlib.Path(folder) / 'metrics.jsonl'
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    whole.write_text(self._path, lines)
    self._file = self._path.open('a')
    self._tensorboard = tensorboardX.SummaryWriter(
      str(pathlib.Path(folder) / 'tensorboard'),
      purge_step=first_step + 1,
      filename_suffix=f'.from_step_{first_step}',
      write_to_disk=True,
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one record; on disk when it returns."""
    self._file.write(json.dumps({'step': step} | dict(scalars)) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._tensorboard.add_scalar(name, value, step)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._tensorboard.close()


def read_curve(folder: str | os.PathLike) -> list[dict[str, float]]:
  """Returns the records of a run's `metrics.jsonl`; [] where there is none."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:  # cut short when the process was killed
      break
  return records
