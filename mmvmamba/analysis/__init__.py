"""Analysis of networks; import its modules by name."""
