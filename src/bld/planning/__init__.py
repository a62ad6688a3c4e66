"""What a run will cost, and what can be trained in a time budget, before anything is trained."""
