"""What the tests of simulation share: their toys, by import."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for toy_policies
