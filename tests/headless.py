"""Debian's Chromium, driven by tests."""

import contextlib
import shutil

from playwright import sync_api
import pytest


@contextlib.contextmanager
def chromium():
  """Yields a browser; a test fails where there is none."""
  path = shutil.which('chromium')
  if path is None:
    pytest.fail(
      'chromium is not there, and pages cannot be tested without it; '
      'apt-get install chromium.'
    )
  with sync_api.sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=path, args=['--no-sandbox', '--disable-dev-shm-usage']
    )
    yield browser
    browser.close()
