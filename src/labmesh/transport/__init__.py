"""The only place that speaks ZeroMQ: sockets, keys and authentication, channels."""
