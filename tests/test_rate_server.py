"""The rating server against clients that are slow, greedy or curious."""

import contextlib
import http.client
import socket
import stat
import threading
import time
from urllib import request as url_request

from helpers import rated_records
import pytest

from experiments.rate import server as server_lib
from jumprelu_jax import errors
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib

HEAD = (
  b'POST /rater/ann/item/x HTTP/1.1\r\nHost: localhost\r\n'
  b'Content-Type: application/x-www-form-urlencoded\r\n'
)


@pytest.fixture(scope='module')
def records(tmp_path_factory):
  return rated_records.write_six(tmp_path_factory.mktemp('records'))


@pytest.fixture
def study(records, tmp_path):
  return rated_records.prepare_small(tmp_path / 'study', records)


@pytest.fixture(scope='module')
def port(records, tmp_path_factory):
  """Where a server listens that is patient for a second."""
  folder = tmp_path_factory.mktemp('served') / 'study'
  study = rated_records.prepare_small(folder, records)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(server_lib, '_PATIENCE_S', 1)
    patched.setattr(server_lib, '_CLEANUP_S', 0)
    app = server_lib.make_app(study, '127.0.0.1')
    server = server_lib.listen(app, '127.0.0.1', 0)
    threading.Thread(target=server.run, daemon=True).start()
    yield server_lib.addresses(server)[0][1]
    server.close()


@contextlib.contextmanager
def connected(port):
  with socket.create_connection(('127.0.0.1', port), timeout=30) as client:
    yield client


def until_closed(client):
  """Returns what comes before the connection is closed."""
  got = b''
  with contextlib.suppress(ConnectionError):
    while data := client.recv(1 << 16):
      got += data
  return got


def is_served(port):
  page = url_request.urlopen(f'http://127.0.0.1:{port}/', timeout=30)
  return b'ann' in page.read()


def test_a_large_body_is_refused_before_it_is_sent(port):
  with connected(port) as client:
    client.sendall(HEAD + b'Content-Length: 400000000\r\n\r\n')
    assert b' 413 ' in until_closed(client).split(b'\r\n')[0]
  assert is_served(port)


@pytest.mark.parametrize(
  'head',
  [b'Content-Length: 16385\r\n\r\n', b'Transfer-Encoding: chunked\r\n\r\n'],
)
def test_a_large_body_is_not_read(port, head):
  """Kernels buffer some megabytes of what nobody reads."""
  piece = b'10000\r\n' + b'x' * (1 << 16) + b'\r\n'
  sent = 0
  with connected(port) as client, contextlib.suppress(ConnectionError):
    client.sendall(HEAD + head)
    while sent < 400_000_000:
      client.sendall(piece)
      sent += len(piece)
  assert sent < 40_000_000
  assert is_served(port)


def test_a_large_header_is_refused(port):
  with connected(port) as client, contextlib.suppress(ConnectionError):
    client.sendall(HEAD + b'X: ' + b'x' * 100_000)
    assert b' 431 ' in until_closed(client)
  assert is_served(port)


@pytest.mark.parametrize('is_silent', [True, False])
def test_a_slow_client_is_cut_off(port, is_silent):
  with connected(port) as client:
    client.sendall(HEAD + b'Content-Length: 100\r\n\r\n')
    start, is_cut = time.monotonic(), False
    client.settimeout(0.1)
    while not is_cut and time.monotonic() - start < 20:
      try:
        if not is_silent:
          client.sendall(b'x')
        is_cut = client.recv(1) == b''
      except TimeoutError:
        pass
      except ConnectionError:
        is_cut = True
    assert is_cut
    assert time.monotonic() - start > 0.5
  assert is_served(port)


def test_a_hundred_slow_clients_keep_nobody_out(port):
  with contextlib.ExitStack() as held:
    for _ in range(110):
      client = held.enter_context(connected(port))
      client.sendall(HEAD)
    assert is_served(port)


def test_connections_may_be_used_again(port):
  """The time is that of a request, not of a connection."""
  client = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  client.connect()
  used = client.sock
  for _ in range(5):
    client.request('GET', '/')
    assert b'ann' in client.getresponse().read()
    assert client.sock is used
    time.sleep(0.3)
  client.close()


def test_a_study_is_its_owners_alone(study, records):
  answers.create(study.answers)
  answers.save(study.answers, 'ann', study.orders['ann'][0], 'yes', '')
  assert stat.S_IMODE(study.folder.stat().st_mode) == 0o700
  files = list(study.folder.iterdir())
  assert {path.name for path in files} == {
    'study.json', 'items.jsonl', 'seal.json', 'answers.sqlite'
  }  # fmt: skip
  for path in files:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_study_that_others_could_read_is_closed(study):
  answers.create(study.answers)
  for path in (study.folder, *study.folder.iterdir()):
    path.chmod(0o755)
  study_lib.prepare(study.folder, {})
  for path in (study.folder, *study.folder.iterdir()):
    assert not path.stat().st_mode & 0o077


@pytest.mark.parametrize('port', [-1, 65_536, 99_999])
def test_ports_that_are_none(port):
  """A system would take 99,999 for 34,463."""
  with pytest.raises(errors.InputError, match=f'--port={port}'):
    server_lib.listen(None, '127.0.0.1', port)
