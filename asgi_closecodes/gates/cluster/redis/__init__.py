"""A Redis or Valkey as the store of the cluster gates."""
