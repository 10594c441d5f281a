"""A local server that speaks the chat-completions protocol, as it is told to.

`Server(answer)` listens on loopback in a thread. `answer` takes a request's
body and how many requests came before it, and returns a text, or a `Reply`.
"""

import collections
import dataclasses
import http.server
import json
import re
import socket
import sys
import threading
import time


@dataclasses.dataclass(frozen=True)
class Reply:
  """What a request gets.

  Attributes:
    text: of the message.
    status: HTTP's.
    headers: of the response.
    body: in place of the protocol's, bytes.
    refusal: of the message.
    finish_reason: of the choice.
    delay_s: before anything is sent.
    drop: close the connection without an answer.
  """

  text: str = ''
  status: int = 200
  headers: dict = dataclasses.field(default_factory=dict)
  body: bytes | None = None
  refusal: str | None = None
  finish_reason: str = 'stop'
  delay_s: float = 0.0
  drop: bool = False


class Server:
  """The server, as a context.

  Attributes:
    requests: bodies of all requests, in order of their arrival.
    headers: of each.
    times: of each, by the monotonic clock.
    most: requests under way at a time, at most.
  """

  def __init__(self, answer):
    self.requests, self.headers, self.times = [], [], []
    self.most = self._under_way = 0
    self._answer, self._lock = answer, threading.Lock()
    handler = type('Handler', (_Handler,), {'owner': self})
    self._server = _Listener(('127.0.0.1', 0), handler)

  @property
  def url(self):
    return f'http://127.0.0.1:{self._server.server_address[1]}/v1'

  def __enter__(self):
    # `shutdown` waits for the end of a poll, half a second by default.
    threading.Thread(
      target=self._server.serve_forever, args=(0.01,), daemon=True
    ).start()
    return self

  def __exit__(self, *_):
    self._server.shutdown()
    self._server.server_close()

  def took(self, body, headers):
    with self._lock:
      count = len(self.requests)
      self.requests.append(body)
      self.headers.append(headers)
      self.times.append(time.monotonic())
      self._under_way += 1
      self.most = max(self.most, self._under_way)
    try:
      reply = self._answer(body, count)
      reply = Reply(reply) if isinstance(reply, str) else reply
      time.sleep(reply.delay_s)
      return reply
    finally:
      with self._lock:
        self._under_way -= 1


class _Listener(http.server.ThreadingHTTPServer):
  daemon_threads = True

  def handle_error(self, request, client_address):
    # A client that has given up is what some tests want.
    if not isinstance(
      sys.exc_info()[1], (ConnectionError, json.JSONDecodeError)
    ):
      super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    assert self.path == '/v1/chat/completions', self.path
    reply = self.owner.took(body, self.headers)
    if reply.drop:
      self.connection.shutdown(socket.SHUT_RDWR)
      self.close_connection = True
      return
    sent = reply.body
    if sent is None:
      sent = json.dumps(_completion(body, reply)).encode()
    self.send_response(reply.status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(sent)))
    for name, value in reply.headers.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(sent)

  def log_message(self, *_):
    pass


def _completion(body, reply):
  if reply.status != 200:
    return {'error': {'message': reply.text, 'type': 'e', 'code': None}}
  message = {'role': 'assistant', 'content': reply.text}
  if reply.refusal is not None:
    message |= {'content': None, 'refusal': reply.refusal}
  return {
    'id': 'x',
    'object': 'chat.completion',
    'created': 0,
    'model': body['model'],
    'choices': [
      {'index': 0, 'message': message, 'finish_reason': reply.finish_reason}
    ],
    'usage': {'prompt_tokens': 100, 'completion_tokens': 10,
              'total_tokens': 110},
  }  # fmt: skip


def task(body):
  """Which of the four questions a request is."""
  system = body['messages'][0]['content']
  for name, word in (
    ('explain', 'Answer with one sentence'),
    ('simulate', 'for each token how active'),
    ('detect', 'active anywhere in it'),
    ('fuzz', 'its marks are right'),
  ):
    if word in system:
      return name
  raise AssertionError(system)


def tokens(body):
  """The tokens of a request to simulate."""
  lines = re.findall(r'^\d+: (".*")$', question(body), re.MULTILINE)
  return [json.loads(line) for line in lines]


def pieces(body):
  """The numbered texts of a request."""
  return re.split(r'^Text \d+:\n', question(body), flags=re.MULTILINE)[1:]


def question(body):
  """The first question; a later one asks to correct the answer."""
  return body['messages'][1]['content']


def numbered(values):
  """Values as the answer that is asked for."""
  return json.dumps({str(i): v for i, v in enumerate(values, start=1)})


def honest(body):
  """An answer from nothing but the question, as an ideal model gives it."""
  kind = task(body)
  if kind == 'explain':
    marked = re.findall(r'<<( t\d+)>>', question(body))
    token = collections.Counter(marked).most_common(1)[0][0]
    return f'Active on the token{token}.'
  token = ' ' + re.search(r'the token (t\d+)', question(body))[1]
  if kind == 'simulate':
    listed = tokens(body)
    return numbered([10 * (t == token) for t in listed])
  texts = pieces(body)
  if kind == 'detect':
    return numbered([_has(piece, token) for piece in texts])
  marked = [set(re.findall(r'<<( t\d+)>>', piece)) for piece in texts]
  return numbered([int(some == {token}) for some in marked])


def _has(text, token):
  return int(token in re.findall(r' t\d+', text))
