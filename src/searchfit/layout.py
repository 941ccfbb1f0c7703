"""Names in a workspace's folder that several modules know; what all of them are is in workspace."""

from __future__ import annotations

LEDGER = "ledger.sqlite"
"""What generators have answered."""

GROWN = ".grown"
"""What the name of an index is followed by in that of the folder beside it, which holds what was added."""

MIRROR = ".mirror"
"""The folder that makes a workspace the copy here of one in an object store."""
