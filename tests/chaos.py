"""Does a sweep survive a machine that fails? Kills one until time is up.

  python -m tests.chaos --minutes=30 --workdir=DIR

Runs the quickstart's `:quick` sweep once undisturbed, and then again and again
while at random moments of each stage it kills the process (SIGKILL), stops it
for seconds (SIGSTOP), gives notice (SIGTERM), damages the file that was written
last, or fills the disk; each time it gives the same command again. Every sweep
is finished at last, and its parameters, curves and results.csv are held against
the undisturbed one's, bit for bit. Prints figures; given again it goes on.

Processes are forked from one that has imported everything but has not asked JAX
for a device, which spares seconds of imports each; every tenth is a fresh one.
The disk is a small tmpfs where one may be mounted; else it is never filled.

With --power each disturbance is a loss of power instead (`helpers.power`): of
what was not synced, each file and each folder may be lost.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from tests.helpers import power

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ('start', 'harvest', 'training', 'evaluation')
# Of a disturbance; the rest are kills.
CHANCES = {
  'term': 0.1,
  'stop': 0.1,
  'truncate': 0.06,
  'flip': 0.06,
  'fill': 0.05,
}
DISK_BYTES = 400_000_000
RUN_S = 300  # a process that takes longer hangs


def command(workdir):
  config = ROOT / 'configs' / 'quickstart.py'
  return [
    *('experiments.sweep', f'--config={config}:quick', f'--workdir={workdir}'),
    '--config.activations.bucket_rows=2000',  # eight shards
  ]


def environment(folder):
  """Compiled programs are kept, so that a start costs little."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    'USE_TORCH': '0',
    'HF_HUB_OFFLINE': '1',
  }


class Process:
  """A sweep in a process of its own, forked or fresh."""

  def __init__(self, workdir, log, *, is_fresh, power=None):
    self._log = log
    with log.open('wb') as file:
      if is_fresh:
        module, *flags = command(workdir)
        self.pid = subprocess.Popen(
          [sys.executable, '-m', module, *flags],
          cwd=ROOT,
          stdout=file,
          stderr=file,
        ).pid
      else:
        self.pid = os.fork()
        if not self.pid:
          if power:
            power.record()
          _become_sweep(workdir, file)
    self.began = time.monotonic()
    self.code = None

  def poll(self):
    """Returns the exit code, negative of a signal; None while it runs."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
      elif time.monotonic() - self.began > RUN_S:
        raise RuntimeError(f'a process hangs: {self.said()}')
    return self.code

  def send(self, number):
    if self.poll() is None:
      os.kill(self.pid, number)

  def wait(self):
    while self.poll() is None:
      time.sleep(0.01)
    return self.code

  def said(self):
    return self._log.read_text(errors='replace')


def _become_sweep(workdir, file):
  """Runs the sweep in a forked process, which it ends."""
  code = 70
  try:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
    sys.argv = command(workdir)
    from experiments import launch
    from experiments import sweep

    launch.run(sweep.main)
    code = 0
  except SystemExit as error:
    code = error.code if isinstance(error.code, int) else int(bool(error.code))
  except BaseException:
    import traceback

    traceback.print_exc(file=sys.stderr)
    code = 1
  finally:
    sys.stdout.flush()
    os._exit(code)


def stage_of(workdir):
  """Returns where a sweep is by what is in its folder; None at its end."""
  if (workdir / 'pareto.pdf').exists() and (workdir / 'results.csv').exists():
    return None
  saes = [path.parent for path in workdir.glob('*_*/config.json')]
  if saes and all((sae / 'seal.json').exists() for sae in saes):
    return 'evaluation'
  if saes:
    return 'training'
  return 'harvest' if (workdir / 'activations').exists() else 'start'


def outcome(workdir):
  """Returns what must not depend on what happened: names → bytes."""
  found = {'results.csv': (workdir / 'results.csv').read_bytes()}
  for sae in sorted(workdir.glob('*_*/seal.json')):
    for name in ('metrics.jsonl', 'evaluation.json'):
      found[f'{sae.parent.name}/{name}'] = (sae.parent / name).read_bytes()
    for name in ('params.npz', 'latents.npz'):
      with np.load(sae.parent / name) as file:
        for key in file:
          found[f'{sae.parent.name}/{name}/{key}'] = file[key].tobytes()
  return found


def steps_done(workdir):
  """Returns (steps of the newest record, steps of the newest checkpoint)."""
  recorded, saved = 0, []
  for sae in workdir.glob('*_*/config.json'):
    with contextlib.suppress(OSError, IndexError, ValueError):
      line = (sae.parent / 'metrics.jsonl').read_text().splitlines()[-1]
      recorded = max(recorded, json.loads(line)['step'])
    seals = (sae.parent / 'checkpoints').glob('*/seal.json')
    steps = [int(p.parent.name) for p in seals if p.parent.name.isdecimal()]
    saved.append(max(steps, default=0))
  return recorded, min(saved, default=0)


def last_written(workdir):
  """Returns the file that was written last, whole or not; None if none was."""
  paths = [p for p in workdir.rglob('*') if p.is_file() and p.stat().st_size]
  paths = [p for p in paths if p.name != 'run.lock']
  return max(paths, key=lambda p: p.stat().st_mtime_ns, default=None)


class Chaos:
  """The undisturbed sweep, and those that are disturbed; goes on by itself."""

  def __init__(self, folder, seed, *, cuts_power=False):
    self.folder, self._state = folder, folder / 'chaos.json'
    self.counts = collections.Counter()
    self.round, self.lost = 0, []
    if self._state.exists():
      state = json.loads(self._state.read_text())
      self.counts.update(state['counts'])
      self.round, self.lost = state['round'], state['lost']
    self._random = random.Random(f'{seed} {sum(self.counts.values())}')
    self.disk = folder / 'disk'
    self.disk.mkdir(parents=True, exist_ok=True)
    self.is_small = self._mount()
    self._power = None
    if cuts_power:
      self._power = power.Disk(self.disk, folder / 'kept')
      self._power.clear()

  def _mount(self):
    if os.path.ismount(self.disk):
      return True
    size = f'size={DISK_BYTES}'
    mount = ['mount', '-t', 'tmpfs', '-o', size, 'tmpfs', str(self.disk)]
    return not subprocess.run(mount, capture_output=True).returncode

  def close(self):
    if self.is_small:
      subprocess.run(['umount', '-l', str(self.disk)], check=True)

  def save(self):
    state = {'counts': self.counts, 'round': self.round, 'lost': self.lost}
    aside = self._state.with_suffix('.aside')
    aside.write_text(json.dumps(state))
    aside.replace(self._state)

  def start(self, workdir):
    self.counts['processes'] += 1
    is_fresh = self.counts['processes'] % 10 == 0 and not self._power
    log = self.folder / 'process.log'
    return Process(workdir, log, is_fresh=is_fresh, power=self._power)

  def undisturbed(self):
    """Returns (outcome, seconds of each stage) of a sweep left alone."""
    whole = self.folder / 'whole'
    durations = self.folder / 'durations.json'
    if not durations.exists():
      for _ in range(2):  # first to compile, then to measure
        shutil.rmtree(whole, ignore_errors=True)
        process, seconds = self.start(whole), collections.Counter()
        before = time.monotonic()
        while process.poll() is None:
          time.sleep(0.005)
          now = time.monotonic()
          seconds[stage_of(whole) or 'evaluation'] += now - before
          before = now
        if process.code:
          raise RuntimeError(process.said())
      durations.write_text(json.dumps(seconds))
    return outcome(whole), json.loads(durations.read_text())

  def disturb(self, workdir, seconds):
    """Runs the sweep until something happens to it at a random moment."""
    here = stage_of(workdir)
    later = STAGES[STAGES.index(here) :]
    wanted = self._random.choice(later if here != 'start' else STAGES)
    delay = self._random.random() * seconds.get(wanted, 0.1)
    process = self.start(workdir)
    reached = None
    while process.poll() is None:
      stage = stage_of(workdir)
      is_there = stage is None or STAGES.index(stage) >= STAGES.index(wanted)
      # A start is from the process's; any other stage from what it leaves.
      if is_there and reached is None:
        reached = time.monotonic()
      if reached is not None and time.monotonic() - reached >= delay:
        break
      time.sleep(0.002)
    self._happen(process, workdir)
    code = process.wait()
    self._judge(code, process)

  def _happen(self, process, workdir):
    chance, what = self._random.random(), 'kill'
    for name, share in CHANCES.items():
      if chance < share:
        what = name
        break
      chance -= share
    if process.poll() is not None or (what == 'fill' and not self.is_small):
      what = 'kill'
    if self._power:
      what = 'lose'
    stage = stage_of(workdir) or 'end'
    if process.poll() is not None:
      self.counts['ended before'] += 1
      return
    self.counts[f'{what} in {stage}'] += 1
    getattr(self, f'_{what}')(process, workdir, stage)

  def _kill(self, process, workdir, stage):
    process.send(signal.SIGKILL)
    process.wait()
    if stage == 'training':
      recorded, saved = steps_done(workdir)
      self.lost.append(max(0, recorded - saved))

  def _lose(self, process, workdir, stage):
    """Cuts the power: all that was not synced is lost, or some, or none."""
    self._kill(process, workdir, stage)
    share = self._random.choice((0.0, 0.5, 0.9))
    self._power.lose(lambda: self._random.random() < share)

  def _term(self, process, workdir, stage):
    process.send(signal.SIGTERM)
    code = process.wait()
    self.counts[f'code {code} after term in {stage}'] += 1

  def _stop(self, process, workdir, stage):
    process.send(signal.SIGSTOP)
    time.sleep(self._random.uniform(0.5, 2))
    process.send(signal.SIGCONT)

  def _fill(self, process, workdir, stage):
    ballast = self.disk / 'ballast'
    with contextlib.suppress(OSError), ballast.open('wb') as file:
      while True:
        file.write(bytes(1 << 16))
    process.wait()
    self.counts[f'code {process.code} after fill'] += 1
    ballast.unlink()

  def _truncate(self, process, workdir, stage):
    self._damage(
      process, workdir, lambda b: b[: self._random.randrange(len(b))]
    )

  def _flip(self, process, workdir, stage):
    def flipped(content):
      place = self._random.randrange(len(content))
      bit = 1 << self._random.randrange(8)
      changed = bytes([content[place] ^ bit])
      return content[:place] + changed + content[place + 1 :]

    self._damage(process, workdir, flipped)

  def _damage(self, process, workdir, change):
    """Kills, and changes the file that was written last."""
    process.send(signal.SIGKILL)
    process.wait()
    path = last_written(workdir) if workdir.exists() else None
    if path is None:
      return
    content = path.read_bytes()
    path.write_bytes(change(content))
    again = self.start(workdir)
    code = again.wait()
    if code == 0:
      self.counts['damage passed over or mended'] += 1
    elif code == 2 and str(workdir) in again.said():
      self.counts['damage refused by name'] += 1
      path.write_bytes(content)  # as its message asks
    else:
      raise RuntimeError(f'{path} was damaged: code {code}: {again.said()}')

  def _judge(self, code, process):
    said = process.said()
    fine = code in (0, 75, -signal.SIGKILL, -signal.SIGTERM)
    words = 'no space', 'too few'
    full = code == 2 and any(word in said.lower() for word in words)
    if not fine and not full:
      raise RuntimeError(f'a sweep ended with code {code}: {said}')

  def one_round(self, wanted, seconds):
    """Disturbs a sweep some times, finishes it, and compares."""
    workdir = self.disk / f'round_{self.round}'
    for _ in range(self._random.randint(4, 10)):
      if stage_of(workdir) is None:
        break
      self.disturb(workdir, seconds)
      self.save()
    process = self.start(workdir)
    if process.wait():
      raise RuntimeError(f'code {process.code}: {process.said()}')
    got = outcome(workdir)
    differing = [k for k in wanted if got.get(k) != wanted[k]]
    if differing or got.keys() != wanted.keys():
      raise RuntimeError(f'{workdir} differs in {differing or "its files"}')
    self.counts['sweeps bit-identical'] += 1
    shutil.rmtree(workdir)
    self.round += 1
    self.save()

  @property
  def kills(self):
    kinds = ('kill', 'lose')
    return sum(n for k, n in self.counts.items() if k.startswith(kinds))

  def report(self, elapsed):
    for name, count in sorted(self.counts.items()):
      print(f'{count:6d}  {name}')
    lost = self.lost or [0]
    print(
      f'{self.kills} kills in {elapsed:.0f} s; steps lost by a kill in '
      f'training: mean {np.mean(lost):.1f}, at most {max(lost)}'
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--minutes', type=float, default=30)
  parser.add_argument('--kills', type=int, default=10**9, help='stop after')
  parser.add_argument('--power', action='store_true', help='cut the power')
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  flags = parser.parse_args()
  folder = flags.workdir.absolute()
  folder.mkdir(parents=True, exist_ok=True)
  os.environ.update(environment(folder))
  sys.path.insert(0, str(ROOT))
  os.chdir(ROOT)
  import datasets  # noqa: F401  (what forked processes would import)
  import tensorboardX  # noqa: F401

  from experiments import sweep  # noqa: F401

  began = time.monotonic()
  chaos = Chaos(folder, flags.seed, cuts_power=flags.power)
  try:
    wanted, seconds = chaos.undisturbed()
    print(
      'seconds of each stage:', {k: round(v, 1) for k, v in seconds.items()}
    )
    while (
      time.monotonic() - began < 60 * flags.minutes
      and chaos.kills < flags.kills
    ):
      chaos.one_round(wanted, seconds)
  finally:
    chaos.report(time.monotonic() - began)
    chaos.close()


if __name__ == '__main__':
  main()
