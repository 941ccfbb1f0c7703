"""The page: search, compare, judge, queries and report, rendered on the server.

It works without script; `page.js` adds search as you type and keys. Nothing is loaded from elsewhere, and the
content security policy lets nothing run but that one file.
"""

from __future__ import annotations

from searchfit.server.page.routes import add_page

__all__ = ["add_page"]
