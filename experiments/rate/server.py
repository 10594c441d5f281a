"""The pages that raters see. Nothing in them says which SAE a latent is from.

  /                          who are you?
  /rater/NAME/               to the next item without an answer
  /rater/NAME/answers        all of the rater's items
  /rater/NAME/item/ITEM      an item; POST answers it

A rater is in the address, not in a cookie: two in one browser are two.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from urllib import parse

import flask
import waitress
from waitress import channel
from werkzeug import exceptions

from experiments.rate import pages
from jumprelu_jax import errors
from jumprelu_jax import progress
from jumprelu_jax.ratings import answers
from jumprelu_jax.ratings import study as study_lib

_MAX_BODY_BYTES = 1 << 14
_PATIENCE_S, _CLEANUP_S = 30, 5  # with a client that is slow
_THREADS = 8
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
  ),
  # Not no-referrer: with it browsers hide the origin of forms as well.
  'Referrer-Policy': 'same-origin',
  'X-Content-Type-Options': 'nosniff',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Cache-Control': 'no-store',
}


def make_app(study: study_lib.Study, host: str) -> flask.Flask:
  """Returns the pages of a study, for a server that listens at a host."""
  _ = study.shown  # what is damaged is told now, not to a rater
  answers.create(study.answers)
  key = answers.key(study.answers)
  app = flask.Flask(__name__)
  app.config['MAX_CONTENT_LENGTH'] = _MAX_BODY_BYTES

  def token(rater):
    return hmac.new(key, rater.encode(), hashlib.sha256).hexdigest()

  if is_loopback(host):
    app.before_request(_check_host)
  app.before_request(_check_origin)
  app.after_request(_add_headers)
  app.register_error_handler(exceptions.HTTPException, _show_error)
  _add_pages(app, study, token)
  return app


def serve(study: study_lib.Study, host: str, port: int) -> None:
  """Serves a study until the process is ended.

  Raises:
    errors.InputError: there is no listening at the host and port.
  """
  server = listen(make_app(study, host), host, port)
  if not is_loopback(host):
    progress.say(
      f'warning: --host={host} lets other machines in, and nobody is asked for '
      'a password: whoever reaches this port can read and change all answers.'
    )
  for name, number in addresses(server):
    name = f'[{name}]' if ':' in name else name
    progress.say(f'raters: http://{name}:{number}/ (Ctrl-C ends it)')
  server.run()


def listen(
  app: flask.Flask, host: str, port: int
) -> waitress.server.BaseWSGIServer | waitress.server.MultiSocketServer:
  """Returns a server that listens; `run` serves.

  What is larger than a form is refused before it is read, and a client that
  takes longer than half a minute for its request is cut off.
  """
  if not 0 <= port < 2**16:
    raise errors.InputError(f'--port={port}: expected 0 to 65535.')
  try:
    server = waitress.create_server(
      app,
      host=host,
      port=port,
      threads=_THREADS,
      ident=None,
      max_request_body_size=_MAX_BODY_BYTES,
      max_request_header_size=_MAX_BODY_BYTES,
      channel_timeout=_PATIENCE_S,
      cleanup_interval=_CLEANUP_S,
    )
  except (OSError, ValueError) as error:
    raise errors.InputError(
      f'--host={host} --port={port}: {error}; give another --port, or 0 for '
      'any that is free.'
    ) from error
  # Of several addresses, such as localhost's, each has a server of its own.
  for one in [server, *getattr(server, 'map', {}).values()]:
    if hasattr(one, 'channel_class'):
      one.channel_class = _Channel
  return server


def addresses(server) -> list[tuple[str, int]]:
  """Returns the hosts and ports where a server listens."""
  return getattr(server, 'effective_listen', None) or [
    (server.effective_host, server.effective_port)
  ]


class _Channel(channel.HTTPChannel):
  """A connection that may not take for ever over one request.

  waitress's own time-out begins again with every byte.
  """

  _began: float | None = None

  def received(self, data: bytes) -> bool:
    """Takes what has come; closes where the whole request takes too long."""
    now = time.monotonic()
    self._began = self._began or now
    if now - self._began > _PATIENCE_S:
      self.will_close = True
      return False
    taken = super().received(data)
    if self.request is None:  # it is whole, or refused
      self._began = None
    return taken


def is_loopback(host: str) -> bool:
  """True if only this machine reaches a host."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def _add_pages(app, study, token):
  """Adds the routes."""

  @app.get('/')
  def enter():
    return flask.render_template('enter.html', raters=pages.raters(study))

  @app.get('/rater/<rater>/')
  def go_on(rater):
    _check_known(study, rater)
    return flask.redirect(pages.address_of_next(study, rater))

  @app.get('/rater/<rater>/answers')
  def all_answers(rater):
    _check_known(study, rater)
    return flask.render_template('answers.html', **pages.overview(study, rater))

  @app.get('/rater/<rater>/item/<item>')
  def show(rater, item):
    _check_known(study, rater, item)
    return flask.render_template(
      'item.html', token=token(rater), **pages.item(study, rater, item)
    )

  @app.post('/rater/<rater>/item/<item>')
  def answer(rater, item):
    _check_known(study, rater, item)
    form = flask.request.form
    if not hmac.compare_digest(
      form.get('token', '').encode(), token(rater).encode()
    ):
      flask.abort(403, 'This form is not of this study; load the page again.')
    rating, explanation = pages.read_form(form)
    answers.save(study.answers, rater, item, rating, explanation)
    # Committed; only now is the rater told.
    following = pages.address_of_next(study, rater, after=item)
    if _wants_json():
      done = pages.num_answered(study, rater)
      return {'next': following, 'answered': done}
    return flask.redirect(following, 303)


def _check_known(study, rater, item=None):
  if rater not in study.orders:
    flask.abort(404, 'This study has no rater of that name.')
  if item is not None and item not in study.orders[rater]:
    flask.abort(404, 'This rater has no such item.')


def _check_host():
  """Refuses names of other sites, which may be made to mean this machine.

  Flask's own TRUSTED_HOSTS knows no IPv6.
  """
  name = parse.urlsplit(f'//{flask.request.host}').hostname or ''
  if not is_loopback(name):
    flask.abort(400, 'This address is not one of this machine.')


def _check_origin():
  """Refuses what another site's page has sent."""
  request = flask.request
  if request.method in ('GET', 'HEAD'):
    return
  origin = request.headers.get('Origin')
  site = request.headers.get('Sec-Fetch-Site', 'same-origin')
  is_ours = origin is None or parse.urlsplit(origin).netloc == request.host
  if not is_ours or site != 'same-origin':
    flask.abort(403, "Another site's page sent this; nothing was stored.")


def _add_headers(response):
  response.headers.update(_HEADERS)
  return response


def _show_error(error):
  if _wants_json():
    return {'error': error.description}, error.code
  return flask.render_template('error.html', error=error), error.code


def _wants_json():
  return flask.request.accept_mimetypes.best == 'application/json'
