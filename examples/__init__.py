"""Programs that use the package as anyone may; none of them is imported by it."""
