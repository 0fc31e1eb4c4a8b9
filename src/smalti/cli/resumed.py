"""`--resume` without `--config`: what is not given comes from the run."""

from itertools import pairwise
from pathlib import Path

from smalti.checks import RUN_SETTINGS


def with_settings_of_run(arguments: list[str]) -> list[str]:
    """Put the recipe of the run before the arguments of `--resume`, unless they name a recipe themselves.

    Without it, a run that was begun with `--optimization.steps 20` would be resumed with the default number of steps.
    """
    out, names = "", [word.partition("=")[0] for word in arguments]
    for word, following in pairwise([*arguments, ""]):
        if word.partition("=")[0] in ("-o", "--out"):
            out = word.partition("=")[2] if "=" in word else following
    recipe = Path(out, RUN_SETTINGS)
    if "--resume" not in names or "--config" in names or not out or not recipe.is_file():
        return arguments
    return ["--config", str(recipe), *arguments]
