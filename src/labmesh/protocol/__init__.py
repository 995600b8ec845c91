"""What labmesh decides: pure classes without input or output, clock or randomness."""
