"""Settings of the whole test run: one thread, the shipped rates, and how many examples hypothesis draws."""

from __future__ import annotations

import os

import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# Plans must not depend on how busy the machine is.
os.environ["CONVEIN_CALIBRATION"] = "off"

QUIET = [HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large]
settings.register_profile(
    "tests", max_examples=150, deadline=None, derandomize=True, print_blob=True, suppress_health_check=QUIET
)
settings.register_profile(
    "nightly", max_examples=2000, deadline=None, derandomize=False, print_blob=True, suppress_health_check=QUIET
)
settings.load_profile("tests")
