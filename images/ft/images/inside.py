"""ImageSpec -> shell lines for a machine that runs in its image: what `setup.py` makes elsewhere is there already."""

from __future__ import annotations

from typing import Final

from ft.images.dockerfile import VARIABLES
from ft.images.spec import ImageSpec
from ft.recipes.runstore import ExitCode

SHOWN_DIGITS: Final = 12
ACTIVATION: Final = f". {VARIABLES}"
"""The line with which a run begins: a shell that came in by ssh knows nothing of the image's variables."""


def check_script(spec: ImageSpec, named: str) -> str:
    """POSIX shell lines that end with 0 in the image of `spec`, which the recipe calls `named`; else with 78.

    To be run as a file, or put into longer lines: they are a subshell. They say what is there, and the way out. They
    ask no label: the file of variables knows which environment it is, and the source is hashed anew.
    """
    return _CHECK.format(
        lock=spec.lock,
        image=spec.content_hash,
        named=named,
        variables=VARIABLES,
        environment=spec.environment_hash,
        source=spec.source_sha256,
        digits=SHOWN_DIGITS,
        refused=int(ExitCode.CONFIG),
    )


_CHECK: Final = """\
# {lock}, image {image}
# All is in the image {named}; what is left is to see that it is this one.
(
environment={environment}
source={source}
way_out="build and push the recipe's with the ft that sends it (ft image build RECIPE; ft image push RECIPE \
REGISTRY/NAME --write), or take the key out"
refuse() {{ echo "ft setup: cloud.image.pushed: {named} $*; $way_out" >&2; exit {refused}; }}
short() {{ printf %.{digits}s "$1"; }}
[ -f {variables} ] || refuse "is not what runs here, or no image of ft's for SkyPilot: {variables} is missing"
ft_environment=
. {variables}
[ "$ft_environment" = "$environment" ] ||
  refuse "has environment $(short "$ft_environment"), and the run needs $(short "$environment")"
there=$(python -P -c 'from ft.images.bundle import source_digest; print(source_digest())') ||
  refuse "has a Python that cannot read the source of ft"
[ "$there" = "$source" ] || refuse "has source $(short "$there"), and the run needs $(short "$source")"
echo "ft setup: this is image {image}" >&2
)
"""
