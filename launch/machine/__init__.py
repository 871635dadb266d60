"""What this machine lacks, put right before a library looks for it."""
