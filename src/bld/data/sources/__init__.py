"""Where images come from: folders, archives, shards, data sets of a library, and the digits."""
