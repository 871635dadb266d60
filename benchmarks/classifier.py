"""The sharded classifier, forward to updated rows, against the products it cannot avoid.

85,738 identities, d = 512, global batch 256, two gloo ranks of one core each.
"""
