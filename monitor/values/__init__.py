"""The frozen values that pass between rooms. No I/O."""
