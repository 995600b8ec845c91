"""The parts of a databank: uploads, retrieval, announcements, and what looks after datasets."""
