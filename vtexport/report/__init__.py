"""One page out of the reports that lie in a bundle: what was measured, compared and asked, and what was not."""
