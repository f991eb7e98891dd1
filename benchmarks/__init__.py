"""What measures speed, memory and accuracy; results lie in ``results/``."""
