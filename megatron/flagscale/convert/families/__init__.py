"""Families of models, one file each: tensors, shapes and configurations in both formats.

`base.Family` is the contract, `registry` finds the families, and `decoder` and `joins` hold shared parts.
"""
