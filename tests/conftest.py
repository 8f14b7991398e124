"""Where tests find each other's small builders."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
