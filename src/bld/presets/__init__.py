"""Settings of the paper's experiments and of small ones, one YAML file each."""
