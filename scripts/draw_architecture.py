"""The map of the package: its layers, the wings of each, and which may import which.

    python scripts/draw_architecture.py     # writes docs/images/architecture.svg

`LAYERS` and `WINGS` are the rules; tests/test_imports.py holds every import against them and redraws the picture.
"""

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
# From the bottom up. A package imports packages of lower layers, and of its own layer where SAME_LAYER says so.
LAYERS = (
    ("errors", "atomic", "wire"),
    ("config",),
    ("parallel", "cpu_backend"),
    ("models", "checkpoint", "monitor"),
    ("data", "rewards"),
    ("generation",),
    ("training",),
    ("rl",),
    ("recipe", "strategy_check"),
)
SAME_LAYER = {
    ("models", "checkpoint"),  # a model takes its slices from a checkpoint's source
    ("parallel", "cpu_backend"),  # where the device is set up
    ("cpu_backend", "parallel"),  # the self-test starts its processes as a run does
}
# Wings of a package, from the bottom up; "." are the files directly in its folder. Wings of one tier know nothing of
# each other.
WINGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "checkpoint": (("formats", "tables"), ("reading",), ("writing",), ("comparing",), (".",)),
    "config": ((".",), ("foreign",), ("loading",)),
    "cpu_backend": ((".",),),
    "data": (("text",), ("mindspeed", "problems"), (".",)),
    "generation": ((".",),),
    "models": (("layers",), ("fused",), (".",), ("decoding",)),
    "monitor": ((".",), ("pictures", "report")),
    "parallel": (("layout", "launch"), ("moving",), (".",)),
    "recipe": ((".",),),
    "rewards": (("sandbox",), ("answers",), ("functions",), (".",)),
    "rl": (("objective",), ("experience",), (".",)),
    "strategy_check": ((".",),),
    "training": ((".",),),
}
_WIDTH, _MARGIN, _GAP = 1080, 24, 18
_ROW, _BOX = 136, 104  # from one layer to the next; height of a package
_FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Place:
    """Where a module stands: its package, and its wing in it."""

    package: str
    wing: str


def place_of(module: str) -> Place:
    """`r1parallel.rl.objective.kl` → rl, objective; `r1parallel.errors` → errors, "."."""
    parts = module.split(".")[1:]
    tiers = WINGS.get(parts[0], ())
    wings = {wing for tier in tiers for wing in tier}
    return Place(parts[0], parts[1] if len(parts) > 1 and parts[1] in wings else ".")


def module_of(file: Path, package: Path) -> str:
    """The dotted name of a file of the package."""
    parts = file.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, modules: Collection[str]) -> set[str]:
    """Which of `modules` a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it leads"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else node.module for name in whole]
        found |= {name for name in names if name.startswith("r1parallel.")}
    return found


def arrows(package: Path) -> Iterator[tuple[str, str]]:
    """(importing module, imported module) of the whole package."""
    modules = {module_of(file, package): file for file in sorted(package.rglob("*.py"))}
    for module, file in modules.items():
        if module != "r1parallel":
            yield from ((module, other) for other in sorted(imports(file, modules)))


def fault(importing: Place, imported: Place) -> str | None:
    """Why the first may not import the second; None: it may."""
    ranks = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
    if importing.package != imported.package:
        if ranks[imported.package] < ranks[importing.package]:
            return None
        if (importing.package, imported.package) in SAME_LAYER:
            return None
        return f"{importing.package} is not above {imported.package}"
    tiers = {wing: tier for tier, wings in enumerate(WINGS[importing.package]) for wing in wings}
    if importing.wing == imported.wing or tiers[imported.wing] < tiers[importing.wing]:
        return None
    return f"{importing.package}/{importing.wing} is not above {imported.package}/{imported.wing}"


def package_arrows(package: Path) -> set[tuple[str, str]]:
    """(importing package, imported package or module)."""
    edges = {(place_of(a).package, place_of(b).package) for a, b in arrows(package)}
    return {(a, b) for a, b in edges if a != b}


def purpose(package: Path, name: str) -> str:
    """The first line of a package's docstring."""
    return (ast.get_docstring(ast.parse((package / name / "__init__.py").read_text(encoding="utf-8"))) or "").split(
        "\n"
    )[0]


def boxes() -> dict[str, tuple[float, float, float]]:
    """Package → left, top and width of its box; the top layer is drawn first."""
    result = {}
    for row, layer in enumerate(reversed(LAYERS)):
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(layer) - 1)) / len(layer)
        for column, name in enumerate(layer):
            result[name] = (_MARGIN + column * (width + _GAP), _MARGIN + row * _ROW, width)
    return result


def draw(package: Path) -> str:
    """The picture as SVG; its bytes depend on nothing but the package."""
    where, height = boxes(), 2 * _MARGIN + (len(LAYERS) - 1) * _ROW + _BOX
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' height='{height}'>",
        "<title>Layers of r1parallel, their wings and the imports between them</title>",
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
        "<path d='M0 0 L8 4 L0 8 z' fill='#7a869a'/></marker></defs>",
        f"<rect width='{_WIDTH}' height='{height}' fill='#ffffff' rx='10'/>",
    ]
    edges = sorted(package_arrows(package))
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    steps = [
        (a, b) for a, b in edges if layer[a] - layer[b] == 1
    ]  # the others are told in words: no line crosses a box
    lines += [_arrow(where, steps, edge) for edge in steps]
    for name in where:
        told = [other for names in reversed(LAYERS) for other in names if (name, other) in edges and names != LAYERS[0]]
        lines += _package(name, *where[name], package, told)
    return "\n".join([*lines, "</svg>", ""])


def _arrow(where: dict[str, tuple[float, float, float]], edges: list[tuple[str, str]], edge: tuple[str, str]) -> str:
    """A curve from the lower side of the importing box to the upper side of the imported one, spread along both."""
    importing, imported = edge
    out = sorted((b for a, b in edges if a == importing), key=lambda name: where[name][0] + where[name][2] / 2)
    into = sorted((a for a, b in edges if b == imported), key=lambda name: where[name][0] + where[name][2] / 2)
    (left, top, width), (left_2, top_2, width_2) = where[importing], where[imported]
    x = left + width * (out.index(imported) + 1) / (len(out) + 1)
    x_2 = left_2 + width_2 * (into.index(importing) + 1) / (len(into) + 1)
    y, y_2 = top + _BOX, top_2 - 2
    bend = (y_2 - y) / 2
    return (
        f"<path d='M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {x_2:.0f} {y_2 - bend:.0f} {x_2:.0f} {y_2:.0f}' "
        "fill='none' stroke='#7a869a' stroke-width='1.4' marker-end='url(#tip)'/>"
    )


def _package(name: str, left: float, top: float, width: float, package: Path, imported: list[str]) -> Iterator[str]:
    """A box: name, purpose, the wings (lowest tier on the right), and what it imports."""
    folder = name in WINGS
    fill = "#eef4ff" if folder else "#f4f5f7"
    yield (
        f"<rect x='{left:.0f}' y='{top}' width='{width:.0f}' height='{_BOX}' rx='8' fill='{fill}' stroke='#355c9a'/>"
        f"<text x='{left + 12:.0f}' y='{top + 22}' {_FONT} font-size='16' font-weight='bold' fill='#1b2a41'>"
        f"{name if folder else name + '.py'}</text>"
    )
    text = purpose(package, name) if folder else _module_purpose(package, name)
    for number, line in enumerate(_wrapped(text, int((width - 24) / 5.9))):
        yield (
            f"<text x='{left + 12:.0f}' y='{top + 39 + 14 * number}' {_FONT} font-size='11.5' fill='#42526e'>"
            f"{escape(line)}</text>"
        )
    x = left + 12
    for tier in reversed(WINGS.get(name, ())):
        for wing in tier:
            if wing == ".":
                continue
            size = 6.1 * len(wing) + 14
            yield (
                f"<rect x='{x:.0f}' y='{top + 60}' width='{size:.0f}' height='18' rx='9' fill='#d6e4ff'/>"
                f"<text x='{x + 7:.0f}' y='{top + 73}' {_FONT} font-size='11' fill='#1b2a41'>{wing}</text>"
            )
            x += size + 5
    if imported:
        yield (
            f"<text x='{left + 12:.0f}' y='{top + 95}' {_FONT} font-size='11' fill='#7a869a'>"
            f"imports {', '.join(imported)}</text>"
        )


def _module_purpose(package: Path, name: str) -> str:
    return (ast.get_docstring(ast.parse((package / f"{name}.py").read_text(encoding="utf-8"))) or "").split("\n")[0]


def _wrapped(text: str, letters: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


if __name__ == "__main__":
    PICTURE.write_text(draw(ROOT / "r1parallel"), encoding="utf-8")
