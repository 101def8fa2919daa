"""Runs hostile and well-behaved peers against every kind of handler, on live servers, while everything changes."""
