"""Checks of configs and datasets before a run, one module for each kind of mistake."""
