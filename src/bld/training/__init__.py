"""Training: settings, run folder, one loop, one file per stage, and the recipe that puts them in order."""
