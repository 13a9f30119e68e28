"""`ft image show | build | push | pin`: what a run runs in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ft.launcher.cli import console
from ft.launcher.cli.options import JsonOption, RecipeArgument, SetOption
from ft.recipes.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from ft.images.spec import ImageSpec
    from ft.launcher.builders import Builder
    from ft.launcher.recipe_image import RecipeImage
    from ft.recipes.errors import KeyPath

app = typer.Typer(
    no_args_is_help=True, help="The container image of a recipe: show, build, push, pin its base."
)

BASE_KEY: Final = ("cloud", "image", "base")
PLACES: Final = frozenset(f"cloud.{key}" for key in ("backend", "region", "store", "store_bucket"))
"""Where runs go and lie: said with --set, it makes no other image for them."""
PUSHED_KEY: Final = ("cloud", "image", "pushed")
VariantOption = Annotated[
    str | None,
    typer.Option(
        "--variant",
        metavar="NAME",
        help="train, for GPUs, or cpu. Default: what `cloud.gpu` says, else train.",
        show_default=False,
    ),
]
BuilderOption = Annotated[
    str,
    typer.Option(
        "--builder", metavar="NAME", help="docker, podman or buildah; auto: the first that answers."
    ),
]
TagOption = Annotated[
    str | None,
    typer.Option(
        "--tag", metavar="T", help="How the image is called. Default: ft:HASH.", show_default=False
    ),
]


@app.command()
def show(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    variant: VariantOption = None,
    dockerfile: Annotated[
        bool, typer.Option("--dockerfile", help="Print the Dockerfile, and nothing else.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Print what the image of a recipe holds; build nothing."""
    from ft.images.dockerfile import dockerfile as text_of
    from ft.launcher.cli import gallery
    from ft.launcher.recipe_image import image_of

    if dockerfile and json_:
        raise UsageError("--dockerfile and --json: expected one of the two")
    with console.errors_as_json(json_):
        image = image_of(gallery.locate(recipe), set_ or (), variant=variant)
    if json_:
        console.out_json(_as_json(image))
    elif dockerfile:
        console.out_exactly(text_of(image.spec))
    else:
        for line in _described(image, gallery.shown(recipe)):
            console.out(line)


@app.command()
def build(
    recipe: RecipeArgument,
    more: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- ARGS", help="The builder's own arguments, as they are.", show_default=False
        ),
    ] = None,
    *,
    set_: SetOption = None,
    variant: VariantOption = None,
    tag: TagOption = None,
    builder: BuilderOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Build the image of a recipe. Example: ft image build recipe.yml -- --no-cache"""
    from ft.launcher import builders
    from ft.launcher.cli import gallery
    from ft.launcher.recipe_image import image_of, write_context

    with console.errors_as_json(json_):
        image = image_of(gallery.locate(recipe), set_ or (), variant=variant)
        chosen = builders.find(builder)
        name = tag or image.tag
        console.note(
            f"{chosen.name} builds {name} on {image.spec.base} (variant {image.variant}: {image.why})"
        )
        with tempfile.TemporaryDirectory(prefix="ft-image-") as folder:
            write_context(image.spec, Path(folder))
            identity = builders.build(chosen, Path(folder), name, more or ())
    if json_:
        console.out_json(
            {
                "tag": name,
                "id": identity,
                "builder": chosen.name,
                "content_hash": image.spec.content_hash,
            }
        )
        return
    console.out(f"{name}  {identity}")
    if tag is None:
        console.hint(f"ft image push {gallery.shown(recipe)} REGISTRY/NAME:TAG")


@app.command()
def push(
    recipe: RecipeArgument,
    target: Annotated[
        str,
        typer.Argument(
            metavar="REGISTRY/NAME[:TAG]", help="Where it is pushed to.", show_default=False
        ),
    ],
    *,
    set_: SetOption = None,
    variant: VariantOption = None,
    tag: TagOption = None,
    builder: BuilderOption = "auto",
    write: Annotated[
        bool,
        typer.Option("-w", "--write", help="Put it into the recipe file, for backend sky."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Push the built image of a recipe, with the logins that the builder has.

    Without TAG it is the image's hash, so that nothing that is there already becomes something else. --write puts the
    name, with the digest that the registry gave, into the recipe as cloud.image.pushed.
    """
    from ft.launcher import builders
    from ft.launcher.cli import gallery
    from ft.launcher.image_registry import is_tagged
    from ft.launcher.recipe_image import image_of

    with console.errors_as_json(json_):
        # Before anything is pushed: a file that cannot be written needs no push.
        file = _file_to_write(recipe) if write else None
        image = image_of(gallery.locate(recipe), set_ or (), variant=variant)
        name = tag or image.tag
        if not is_tagged(target):
            target = f"{target}:{image.tag.partition(':')[2]}"
        how = f"ft image build {gallery.shown(recipe)}"
        chosen = builders.built(name, builder, how=how)
        if file is not None:
            places = [text for text in set_ or () if text.partition("=")[0].strip() in PLACES]
            of_recipe = image_of(gallery.locate(recipe), places)
            _must_be_the_recipes(image, of_recipe, chosen, name)
        digest = builders.push(chosen, name, target)
        if file is not None:
            _write_key(file, PUSHED_KEY, f"{target}@{digest}")
    if json_:
        said = {"image": target, "digest": digest, "content_hash": image.spec.content_hash}
        console.out_json({**said, "written": file is not None})
        return
    console.out(f"{target}@{digest}")
    if file is not None:
        console.note(f"{gallery.shown(recipe)}: cloud.image.pushed is written")
    elif image.spec.user == "root":
        console.hint("with --write it stands in the recipe, as cloud.image.pushed")


def _must_be_the_recipes(
    image: RecipeImage, of_recipe: RecipeImage, builder: Builder, name: str
) -> None:
    """Raises: UsageError for an image that no machine of a run of the recipe would take."""
    from ft.launcher import builders

    if image.spec.user != "root":
        raise UsageError(
            "--write: cloud.image.pushed is read by backend sky, whose way in is root's, and this image is for people",
            hint="--set cloud.backend=sky, of `ft image build` and `push`, or the same in the recipe",
        )
    if image.variant != of_recipe.variant:
        raise UsageError(
            f"--write: a run of the recipe gets variant {of_recipe.variant} ({of_recipe.why})",
            hint="leave --variant out",
        )
    if image.spec != of_recipe.spec:
        raise UsageError(
            "--write: with these --set it is another image than runs of the recipe get",
            hint="write them into the recipe, or leave them out",
        )
    found = builders.content_hash_of(builder, name)
    if found != image.spec.content_hash:
        raise UsageError(
            f"--write: {name} is another image than this recipe's", hint="leave --tag out"
        )


@app.command()
def pin(
    recipe: RecipeArgument,
    *,
    set_: SetOption = None,
    write: Annotated[
        bool, typer.Option("-w", "--write", help="Put it into the recipe file.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Ask the registry for the digest of the base image, and pin the recipe to it.

    The tag of an image can stand for another one tomorrow; its digest cannot. Prints what belongs into the recipe;
    --write puts it there. Where the registry does not answer, nothing is written.
    """
    from ft.launcher import image_registry
    from ft.launcher.cli import gallery
    from ft.launcher.recipe_image import image_of

    with console.errors_as_json(json_):
        # Before anything is asked: a file that cannot be written needs no answer.
        file = _file_to_write(recipe) if write else None
        spec = image_of(gallery.locate(recipe), set_ or ()).spec
        try:
            digest = image_registry.digest_of(image_registry.parse(spec.base_image))
        except UnreachableError as error:
            raise UnreachableError(f"{error.message}; nothing is pinned") from None
        pinned = f"{spec.base_image}@{digest}"
        if file is not None and pinned != spec.base:
            _write_key(file, BASE_KEY, pinned)
    if json_:
        console.out_json(
            {"base": pinned, "was": spec.base, "written": file is not None and pinned != spec.base}
        )
        return
    _say_pinned(recipe, spec, pinned, is_written=file is not None)


def _say_pinned(recipe: str, spec: ImageSpec, pinned: str, *, is_written: bool) -> None:
    from ft.launcher.cli import gallery

    if pinned == spec.base:
        console.note(f"{spec.base_image} is still what the recipe is pinned to")
        console.out(pinned)
        return
    console.out(f"cloud:\n  image:\n    base: {pinned}")
    if spec.base_digest:
        console.note(f"before: {spec.base_digest}")
    if is_written:
        console.note(f"{gallery.shown(recipe)}: cloud.image.base is written")
    else:
        console.hint(f"ft image pin {gallery.shown(recipe)} --write  puts it into the recipe")


def _file_to_write(recipe: str) -> Path:
    """Raises: UsageError if `recipe` is no file of the user's."""
    from ft.launcher.cli import complete
    from ft.recipes.paths import expand

    path = expand(recipe) if recipe != "-" else None
    if path is None or not path.is_file():
        hint = None
        if recipe in complete.gallery_names(recipe):
            hint = f"ft recipes copy {recipe}  puts one here to change"
        raise UsageError(f"{recipe}: --write writes a file, and this is none", hint=hint)
    return path


def _write_key(path: Path, key: KeyPath, value: str) -> None:
    from ft.launcher.cli.migrating import replace_file
    from ft.recipes.writing import put

    with path.open(encoding="utf-8", newline="") as stream:
        text = stream.read()
    replace_file(path, put(text, str(path), key, value).encode(), shown=str(path))


def _as_json(image: RecipeImage) -> dict[str, Any]:
    import json

    from ft.images.dockerfile import dockerfile

    built = _built(image)
    return {
        "content_hash": image.spec.content_hash,
        "variant": image.variant,
        "variant_from": image.why,
        "tag": image.tag,
        "spec": json.loads(image.spec.to_json()),
        "dockerfile": dockerfile(image.spec),
        "built_by": built[0] if built else None,
        "size_bytes": built[1] if built else None,
    }


def _built(image: RecipeImage) -> tuple[str, int | None] | None:
    """Who has it on this machine, and its size."""
    from ft.launcher import builders

    builder = builders.with_image(image.tag)
    return (builder.name, builders.size_of(builder, image.tag)) if builder else None


def _described(image: RecipeImage, recipe: str) -> Iterator[str]:
    spec = image.spec
    yield f"image {spec.content_hash}"
    facts = [
        (
            "variant",
            f"{image.variant} ({image.why}); --variant {_other(image.variant)} is the other one",
        ),
        (
            "base",
            spec.base if spec.base_digest else f"{spec.base}, by its tag; ft image pin {recipe}",
        ),
        ("python", spec.python),
        ("packages", ", ".join(spec.apt)),
        ("torch", spec.torch),
        ("requirements", ", ".join(spec.requirements)),
        ("lock", f"{len(spec.locked)} packages with their hashes"),
        ("ft command", ", ".join(spec.command_line) or "none: nobody types in it"),
        ("recipe's", ", ".join((*spec.more_apt, *spec.more_pip, *spec.commands)) or "nothing"),
        ("variables", ", ".join(name for name, _ in spec.env)),
        ("source", f"{spec.source_sha256[:12]}, unpacked in the last layer"),
        ("secrets", "none: a run gets them when it starts"),
        ("user", _user(spec)),
        ("here", _where(image, recipe)),
    ]
    for label, text in facts:
        yield from console.labelled(label, text)


def _user(spec: ImageSpec) -> str:
    from ft.images.dockerfile import CACHE, HOME, STORE, USER_ID

    if spec.user == "root":
        return "root, as cloud.backend comes in; --set cloud.backend=local is one for people"
    return f"{USER_ID}, no root; writes {HOME}, {STORE} and {CACHE}"


def _other(variant: str) -> str:
    from ft.launcher.recipe_image import VARIANTS

    return next(name for name in VARIANTS if name != variant)


def _where(image: RecipeImage, recipe: str) -> str:
    built = _built(image)
    if built is None:
        return f"not built; ft image build {recipe}"
    name, size = built
    return f"{image.tag}, built by {name}{f', {console.size(size)}' if size is not None else ''}"
