"""The shared photos, where there are any."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PHOTOS = Path(os.environ.get("PIXELTHINK_SHARED", Path(__file__).parents[2] / "shared")) / "photos"

needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos at {PHOTOS}; set PIXELTHINK_SHARED")
