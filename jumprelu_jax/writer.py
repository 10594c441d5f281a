"""Training curves: JSON lines, and the same for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import pathlib
import time

from jumprelu_jax import json_files
from jumprelu_jax import whole

_SECONDS_PER_FLUSH = 10.0


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
    self._path = pathlib.Path(folder) / 'metrics.jsonl'
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    whole.write_text(self._path, lines)
    self._file = self._path.open('a')
    self._events = _Events(pathlib.Path(folder) / 'tensorboard', first_step)

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes one record; on disk when it returns."""
    self._file.write(json.dumps({'step': step} | dict(scalars)) + '\n')
    self._file.flush()
    self._events.write(step, scalars)

  def close(self) -> None:
    """Closes the files."""
    self._file.close()
    self._events.close()


class _Events:
  """TensorBoard's file, written by whoever calls.

  tensorboardX's own writer has a thread for it; when that has died of a full
  disk, its callers wait for ever.
  """

  def __init__(self, folder, first_step):
    from tensorboardX import record_writer
    from tensorboardX.proto import event_pb2

    folder.mkdir(parents=True, exist_ok=True)
    name = f'events.out.tfevents.{int(time.time())}.{os.getpid()}'
    path = folder / f'{name}.from_step_{first_step}'
    self._event, self._flushed = event_pb2, 0.0
    self._records = record_writer.RecordWriter(str(path))
    self._put(0, file_version='brain.Event:2')
    # Readers forget what another file has from this step on.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._put(first_step + 1, session_log=start)

  def write(self, step, scalars):
    """Writes scalars; on disk within seconds, or at the end."""
    values = [
      {'tag': name, 'simple_value': value} for name, value in scalars.items()
    ]
    self._put(step, summary={'value': values})
    if time.monotonic() - self._flushed > _SECONDS_PER_FLUSH:
      self._records.flush()
      self._flushed = time.monotonic()

  def close(self):
    """Closes the file."""
    self._records.close()

  def _put(self, step, **content):
    event = self._event.Event(step=step, wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())


def read_curve(folder: str | os.PathLike) -> list[dict[str, float]]:
  """Returns the records of a run's `metrics.jsonl`; [] where there is none."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json_files.parse_object(line))
    except ValueError:  # cut short when the process was killed
      break
  return records
