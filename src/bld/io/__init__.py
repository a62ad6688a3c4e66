"""Files and the hub: whole-or-absent writes, large files of equal rows, models shared and fetched."""
