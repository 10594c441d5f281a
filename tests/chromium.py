"""A real browser for tests: the system's Chromium, without a window."""

import contextlib
import shutil

import pytest

_NAMES = ('chromium', 'chromium-browser', 'google-chrome')


@contextlib.contextmanager
def started():
  """Yields the browser; without one the test fails, since it showed nothing."""
  from playwright import sync_api  # not needed to collect the tests

  path = next(filter(None, map(shutil.which, _NAMES)), None)
  if path is None:
    pytest.fail(
      'no Chromium was found, which these tests drive; apt-get install '
      'chromium, as .ci/run does.'
    )
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(
      executable_path=path, args=['--no-sandbox']
    )
    yield browser
    browser.close()
