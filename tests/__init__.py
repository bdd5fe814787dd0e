"""The tests. What Hypothesis thinks of is the same each time; with SEARCH set in the environment, other things."""

import os
import time

os.environ["TZ"] = "UTC"  # the zone of the times that documents show
time.tzset()

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the checks of an installed package do without
    pass
else:
    # A busy machine is no fault: no example has a time limit.
    steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None)
    settings.register_profile("steady", steady)
    settings.register_profile("search", steady, derandomize=False)
    settings.load_profile("search" if os.environ.get("SEARCH") else "steady")
