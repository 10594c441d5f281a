"""A loss of power, simulated: what was never synced may be gone.

`record` keeps aside, in the process that writes, what `os.fsync` has put on the
disk: contents of files, and names in folders. `lose` then makes a folder what a
loss of power may leave of it: of each file and each folder either what is there
now or what was synced last, which may be nothing. Whatever libraries written in
C++ sync by themselves counts as not synced.
"""

import json
import os
import pathlib
import shutil
import stat


class Disk:
  """What of a folder is known to be on the disk, in another folder."""

  def __init__(self, root, kept):
    self.root, self._kept = pathlib.Path(root), pathlib.Path(kept)
    self._kept.mkdir(parents=True, exist_ok=True)

  def clear(self):
    """Empties the disk."""
    for folder in (self.root, self._kept):
      for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()

  def record(self):
    """From now on this process records what it syncs."""
    fsync = os.fsync

    def fsync_and_record(number):
      fsync(number)
      path = pathlib.Path(os.readlink(f'/proc/self/fd/{number}'))
      if path.is_relative_to(self.root) and path.exists():
        self._put(path)

    os.fsync = fsync_and_record

  def lose(self, chance):
    """Makes the folder what a loss of power may leave of it.

    Args:
      chance: returns True where what is there now has reached the disk though
        it was not synced.
    """
    paths = {path.stat().st_ino: path for path in self.root.rglob('*')}
    # What is in the root is there: it stands for the disk.
    tree = self._folder(self.root, None, paths, chance)
    self.clear()
    self._write(self.root, tree)

  def _folder(self, path, inode, paths, chance):
    """Returns {name: content} of a folder; of folders in it, the same."""
    now = _names(path) if path else None
    synced = self._synced(inode)
    synced = json.loads(synced) if synced else {}
    names = now if now == synced or inode is None else None
    if names is None:
      names = now if now is not None and chance() else synced
    found = {}
    for name, (child, is_folder) in names.items():
      there = paths.get(child)
      make = self._folder if is_folder else self._file
      found[name] = make(there, child, paths, chance)
    return found

  def _file(self, path, inode, paths, chance):
    """Returns the content of a file."""
    del paths
    now, synced = path and path.read_bytes(), self._synced(inode) or b''
    if now is None or now == synced:
      return synced
    return now if chance() else synced

  def _synced(self, inode):
    path = self._kept / str(inode)
    return path.read_bytes() if path.exists() else None

  def _put(self, path):
    """Notes the content of a file, or the names in a folder, as synced."""
    state = path.stat()
    content = (
      json.dumps(_names(path)).encode()
      if stat.S_ISDIR(state.st_mode)
      else path.read_bytes()
    )
    # Seen whole or not at all if the process is killed.
    aside = self._kept / f'{state.st_ino}.{os.getpid()}'
    aside.write_bytes(content)
    aside.replace(self._kept / str(state.st_ino))

  def _write(self, folder, tree):
    for name, content in tree.items():
      path = folder / name
      if isinstance(content, dict):
        path.mkdir()
        self._write(path, content)
      else:
        path.write_bytes(content)
        self._put(path)
    self._put(folder)


def _names(folder):
  """Returns {name: [inode, whether it is a folder]}."""
  with os.scandir(folder) as entries:
    return {e.name: [e.inode(), e.is_dir()] for e in entries}
