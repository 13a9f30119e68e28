"""An app that forgot to send a module that it imports."""

import modal
import sample_forgotten

app = modal.App("broken")


@app.function()
def use() -> str:
    return sample_forgotten.__name__
