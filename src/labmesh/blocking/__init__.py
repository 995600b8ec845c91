"""The parts of the blocking facade: :mod:`labmesh.mesh` puts them together."""
