"""The one room that knows Ray."""

import os

# Read when Ray is imported. Trainers that die are told of in our own words, and replaced; of what else Ray's daemons say nothing is held back.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task by an unexpected system error")
