"""How hosts are reached where OpenSSH's client is missing: as `ssh` would, or not at all."""
