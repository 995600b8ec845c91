"""Mode *keys* on one machine: the folder of its keys, and the guard of each of its nodes."""
