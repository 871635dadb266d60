"""Who does the work: CPU actors and training ranks, on Ray, by torchrun or in this process."""
