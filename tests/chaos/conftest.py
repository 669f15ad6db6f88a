"""Lets the tests of this folder import what lies beside them, as the command does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
