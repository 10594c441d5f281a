"""Training curves: JSON lines, and the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
import pathlib


class CurveWriter:
  """Appends records of scalars by step to a run's folder.

  Writes `metrics.jsonl` and `tensorboard/`. A run that goes on from a step
  forgets what was recorded after it, so that no record stands twice.
  """

  def __init__(self, folder: str | os.PathLike, first_step: int = 0):
    import tensorboardX  # seconds to import where torch is installed

    self._path = pathlib.Path(folder) / 'metrics.jsonl'
    kept = [r for r in read_curve(folder) if r['step'] <= first_step]
    self._path.write_text(''.join(json.dumps(r) + '\n' for r in kept))
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
