"""The system's Chromium, without a window, driven by tests."""

import contextlib
import shutil

from playwright import sync_api
import pytest

_NAMES = ('chromium', 'chromium-browser', 'google-chrome')
# Ten times what is needed: machines that run tests may be busy.
_PATIENCE_MS = 120_000
sync_api.expect.set_options(timeout=_PATIENCE_MS)


@contextlib.contextmanager
def chromium():
  """Yields a browser; a test fails where there is none."""
  path = next(filter(None, map(shutil.which, _NAMES)), None)
  if path is None:
    pytest.fail(
      'chromium is not there, and pages cannot be tested without it; '
      'apt-get install chromium, as .ci/run does.'
    )
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=path,
      args=['--no-sandbox', '--disable-dev-shm-usage'],
      timeout=_PATIENCE_MS,
    )
    yield browser
    browser.close()


def context(browser, **options):
  """Returns a window of a browser, one that keeps its own cookies."""
  opened = browser.new_context(**options)
  opened.set_default_timeout(_PATIENCE_MS)
  return opened
