"""Property tests of this room load tokenizers in their first example: no deadline for a single one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("text", deadline=None)
settings.load_profile("text")
