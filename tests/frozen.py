"""Imported last by a process that others are forked from: what it has imported stays for good.

A job ends with a collection of garbage, which would go through all of torch each time, and copy its
memory in every fork.
"""

import gc

gc.collect()
gc.freeze()
