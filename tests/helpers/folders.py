"""Contents of folders, and files damaged on purpose."""


def contents(folder):
  """Bytes by name, without what a killed writer left aside."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob('*'))
    if path.is_file() and not path.name.endswith('.partial')
  }


def times(folder):
  return {
    str(path.relative_to(folder)): path.stat().st_mtime_ns
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def flip(path):
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  path.write_bytes(raw)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-5])
