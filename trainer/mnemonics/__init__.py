"""Exemplars whose pixels are learned (mnemonics, Liu et al. 2020): images as parameters.

The paper's bilevel program, not its released code, which has no inner training at all.
"""
