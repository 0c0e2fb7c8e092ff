"""Target recipes, and the engines built from a bundle for them."""
