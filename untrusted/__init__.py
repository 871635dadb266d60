"""Reading what a stranger may have written: files, names and text, with limits and schemas.

Every reader of files that came from elsewhere (datasets, models, run folders, configurations) goes
through here. The package imports none of the others.
"""
