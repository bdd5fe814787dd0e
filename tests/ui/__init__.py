"""The web interface in a real browser: `python -m tests.ui`.

The modules here have names that trial does not collect: they need Debian's chromium and Playwright for Python,
which the ordinary run does without.
"""
