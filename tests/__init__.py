"""Threads that wait sleep: on a busy machine they would take the time of those that work. OpenMP reads this once."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
