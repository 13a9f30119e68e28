"""WHAT a run is: recipe, rules, plan, and the layout of a run on disk. No torch, no vendor SDK."""
