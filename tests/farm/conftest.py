"""Fixtures for the tests of the farms themselves."""

from flagscale_testing.farm.fixtures import make_loopback_farm, make_namespace_farm  # noqa: F401
