"""The same replay on other engines than our own copy."""
