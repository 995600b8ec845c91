"""What clients make of the datasets of a bank: slices of arrays, searches, folders, origins."""
