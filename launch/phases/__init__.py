"""The phases of a run: one file a kind, planning, and the driver that walks them."""
