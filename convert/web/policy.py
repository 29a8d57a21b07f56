"""The page's Content Security Policy, which its workers need as a header: they don't follow the page's own."""

from __future__ import annotations

import re
from pathlib import Path

HEADER = "Content-Security-Policy"


def policy_of(site: Path) -> str:
    """Return the policy that a site's ``index.html`` states; "" without one."""
    page = site / "index.html"
    found = re.search(rf'http-equiv="{HEADER}" content="([^"]*)"', page.read_text() if page.is_file() else "")
    return found[1] if found else ""
