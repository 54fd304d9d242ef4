"""Speed as ratios measured in one run, for any adapter: `pytest verify/bench --decoder X [--baseline Y]`."""
