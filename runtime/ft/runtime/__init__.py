"""HOW a run trains. Reads `plan.json` and `inputs/`, nothing else; no vendor SDK, no typer."""
