"""Unequal meshes joined into one pipeline: the layout, its keys, its rules and its routing."""
