"""Write the project's public address wherever it is used: pyproject.toml, README, notebooks.

    python3 scripts/set_address.py https://github.com/OWNER/NAME

Notebooks without the package install it from this address, and their Colab badges open it. Tag the
commit that you publish with the version of the package, such as v0.3.0.
"""

import argparse
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Replace the old address with the new one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the project")
    arguments = parser.parse_args()
    new, root = arguments.address.rstrip("/").removesuffix(".git"), arguments.root
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", new):
        parser.error(f"expected https://github.com/OWNER/NAME, received {arguments.address}")
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    old = project["urls"]["Repository"]
    for path in [root / "pyproject.toml", root / "README.md", *root.glob("notebooks/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        # Colab's addresses contain GitHub's path after another host.
        for host in ("github.com/", "/github/"):
            text = text.replace(host + _path(old), host + _path(new))
        path.write_text(text, encoding="utf-8")


def _path(address: str) -> str:
    """`OWNER/NAME`."""
    return address.removeprefix("https://github.com/")


if __name__ == "__main__":
    main()
