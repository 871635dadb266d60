"""A paper of one idea, as its authors would add it: a want, a method and a phase kind, a file each.

`tests/integration/test_toy_paper.py` puts the files where their kinds live, adds the two lines that
`METHODS` and the registry of phases ask for, and runs the method on Ray.
"""
