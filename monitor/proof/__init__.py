"""Proof on stored history: what rules would have done (`backtest`), and what they could see (`power`)."""
