"""The farms themselves are what is tested here."""

from flagscale_testing.farm.fixtures import make_loopback_farm, make_namespace_farm  # noqa: F401
