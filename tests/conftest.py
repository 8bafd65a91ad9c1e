"""Settings that all tests share."""

from hypothesis import HealthCheck, settings

# No deadline: a busy machine is no failure. Derandomised: the suite that runs on every change gives
# the same verdict for the same code; the long tests are the ones that look for new examples.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", settings.get_profile("tests"), derandomize=False, print_blob=True)
settings.load_profile("tests")
