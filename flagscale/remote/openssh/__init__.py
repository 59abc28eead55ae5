"""How hosts are reached where OpenSSH's client is installed: that client does it."""
