"""Checks of configs and data sets before a run. One module for each kind of mistake."""
