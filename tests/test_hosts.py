"""Several processes train one SAE as one process does."""

import time

from helpers import several_hosts
import pytest


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """What one process with four devices trains."""
  folder = tmp_path_factory.mktemp('alone')
  several_hosts.finish(several_hosts.start(1, (2, 2), folder))
  return several_hosts.leaves(folder)


@pytest.mark.parametrize('mesh', [(2, 2), (4, 1), (1, 4)], ids=str)
@pytest.mark.slow
def test_two_processes_train_what_one_does(mesh, alone, tmp_path):
  several_hosts.finish(several_hosts.start(2, mesh, tmp_path))
  several_hosts.assert_near(several_hosts.leaves(tmp_path), alone)


@pytest.mark.parametrize('hosts_mesh', [(1, (1, 1)), (1, (4, 1)), (2, (1, 4))])
@pytest.mark.slow
def test_a_run_goes_on_with_other_hosts(hosts_mesh, alone, tmp_path):
  several_hosts.finish(several_hosts.start(2, (2, 2), tmp_path, stop=4))
  assert not (tmp_path / 'leaves.npz').exists()
  several_hosts.finish(several_hosts.start(*hosts_mesh, tmp_path))
  several_hosts.assert_near(several_hosts.leaves(tmp_path), alone)


@pytest.mark.slow
def test_a_killed_process_ends_the_others(alone, tmp_path):
  """Within a minute, with a line that says so; and the run goes on."""
  processes = several_hosts.start(2, (2, 2), tmp_path, steps=100_000)
  curve = tmp_path / 'metrics.jsonl'
  deadline = time.monotonic() + 60
  while not curve.exists() or len(curve.read_text().splitlines()) < 3:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  processes[1].kill()
  began = time.monotonic()
  output, _ = processes[0].communicate(timeout=60)
  assert processes[0].returncode != 0
  assert time.monotonic() - began < 60
  assert 'task' in output.lower() or 'connection' in output.lower(), output
