"""Demo application with a button for each close code: ``python -m demo_app``."""
