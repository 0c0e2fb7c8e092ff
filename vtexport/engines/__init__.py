"""What bundles are built for: target recipes, and later the engines built from a bundle on its device."""
