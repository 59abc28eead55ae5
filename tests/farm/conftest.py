"""The farms themselves are what is tested here."""

from tests.farm.fixtures import make_loopback_farm, make_namespace_farm  # noqa: F401
