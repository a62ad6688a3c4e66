"""What a run will cost and what a time budget buys, before anything is trained."""
