"""A package, so that a checkout of VISSL's on the path, whose tests are one too, does not hide it."""
