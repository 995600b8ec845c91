"""The parts of a relay: calls and leases at its desk, states, spool, uploads."""
