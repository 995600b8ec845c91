"""The parts of a client: links, calls, streams, batches, proxies of relays and banks."""
