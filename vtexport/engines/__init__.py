"""Target recipes, and the engines that are built of a bundle's graphs for a target."""
