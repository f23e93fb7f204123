"""Checks of configs and data sets before a run, one module for each kind of mistake."""
