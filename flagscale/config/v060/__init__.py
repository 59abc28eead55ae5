"""Files and commands of FlagScale v0.6.0: what its keys became, and the translation."""
