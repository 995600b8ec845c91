"""What ``benchmarks/rpc.py`` is made of."""
