"""Six kinds of blockers on a live server, by hand."""
