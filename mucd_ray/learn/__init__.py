"""From units to policies."""

import os

# MKL's products may otherwise round differently from one memory address to the next, on some processors; it is read at the first product.
os.environ.setdefault("MKL_CBWR", "AUTO")
