"""What commands show on a terminal: the console, progress, datasets being drawn and verified."""
