"""Where tests find the repository and the shared artifacts beside it."""

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"
