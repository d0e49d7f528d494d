"""Published vectors as features of a pack: persona vectors, assistant axes, steering and control vectors."""
