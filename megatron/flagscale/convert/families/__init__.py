"""Families of models, one file each: tensors, shapes and configurations in both formats.

`base.Family` is the contract, `registry` finds the families, `decoder` and `joins` hold what several share.
"""
