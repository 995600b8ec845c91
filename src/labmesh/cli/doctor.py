def doctor() -> int: return 0
