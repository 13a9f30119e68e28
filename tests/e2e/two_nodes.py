"""`python two_nodes.py RECIPE NAME`: submit a run over two CPU machines to Modal, where there are none.

A rule refuses such a recipe, rightly. The loopback control plane has them, and all the way for several machines is the
same with GPUs. So this goes past the rules, and through everything behind them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ft.images import bundle
from ft.images.resolve import resolve as resolve_image
from ft.launcher import dispatch
from ft.launcher.backends.modal_ import ModalBackend
from ft.launcher.inputs import uploads_of
from ft.recipes.resolve import resolve


def main(recipe: str, name: str) -> None:
    checked = dispatch.check(recipe, hashed=True, here=True)
    refused = dispatch.refusal(checked)
    assert refused is None, refused
    flat = checked.normalized.flat
    plan = resolve(flat, checked.facts)
    assert plan.parallel.num_nodes == 2
    block = flat.cloud.cloud
    assert block is not None
    image = resolve_image(plan, source_sha256=bundle.source_digest())
    submission = ModalBackend().prepare(plan, image, uploads=uploads_of(checked.facts), cloud=block)
    output_dir = Path("out-pair").absolute()
    prepared = dispatch.Prepared(
        checked, plan, image, "modal", "two_nodes.py", submission, output_dir, ()
    )
    record, _ = dispatch.submit(prepared, name=name)
    print(record.id)


if __name__ == "__main__":
    main(*sys.argv[1:])
