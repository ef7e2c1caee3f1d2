"""The commands that README and docs show, and a folder `/data` of digits to run them on."""

import json
import re
from pathlib import Path

from digits_on_disk import DigitsOnDisk

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = ("python", "pip", "make")
_FENCED = re.compile(r"^```.*\n((?:.*\n)*?)^```$", re.MULTILINE)
_INDENTED = re.compile(r"(?:^\n|\A)((?:^(?: {4}.*)?\n)*^ {4}.*\n)", re.MULTILINE)
_NUMBER = re.compile(r"\d[\d.,:e+]*")


def documented(markdown: str) -> list[str]:
    """What a page has in code blocks, and the commands it names in backticks.

    Of a block of commands, each command in one line, without comments and with single spaces. Any
    other block is one item; of what a program prints, it is the first line.
    """
    items = []
    for blocks in (_FENCED, _INDENTED):
        for block in blocks.findall(markdown):
            items += _items(block)
        markdown = blocks.sub("\n", markdown)
    for inline in re.findall(r"`([^`]+)`", markdown):
        program, _, arguments = inline.partition(" ")
        if program in PROGRAMS and arguments:
            items.append(inline)
    return items


def program(page: Path, item: str) -> str:
    """The block of a page that `documented` gives as `item`, as it is written."""
    (block,) = (each for each in _FENCED.findall(page.read_text()) if _items(each) == [item])
    return block


def _items(block: str) -> list[str]:
    whole = re.sub(r"\\\n", " ", block)
    lines = [" ".join(re.sub(r"(^|\s)#\s.*", "", line).split()) for line in whole.splitlines()]
    lines = [line for line in lines if line]
    if lines[0].split()[0] in PROGRAMS:
        return lines
    text = "\n".join(lines)
    # What a program prints, by its first line: the numbers differ from run to run.
    return (
        [f"prints {shown(lines[0])}"] if re.match(r"epoch |vissl_barlow \d|=+ ", text) else [text]
    )


def shown(output: str) -> str:
    """What of a program's output does not change from run to run: words, and one space for many."""
    return "\n".join(" ".join(_NUMBER.sub("0", line).split()) for line in output.splitlines())


def lay_out_data(data: Path, digits: DigitsOnDisk) -> None:
    """`data` as the docs have /data: every data set's layout, its images scikit-learn's digits."""
    data.mkdir()
    for name in ("imagenet", "images"):
        (data / name).symlink_to(digits.imagenet)
    (data / "VOCdevkit").mkdir()
    (data / "VOCdevkit" / "VOC2007").symlink_to(digits.voc)
    (data / "simclr").mkdir()
    for name in ("1percent.txt", "10percent.txt"):
        (data / "simclr" / name).write_text(digits.tenth.read_text())

    places, lists = data / "places205" / "images256", data / "places205" / "lists"
    inat = data / "inat18"
    lists.mkdir(parents=True)
    places.symlink_to(digits.imagenet)
    for split in ("train", "val"):
        lines, images = [], []
        for label in range(10):
            # Ten of each: enough to pass through a network.
            for path in sorted((digits.imagenet / split / f"n{label:08d}").iterdir())[:10]:
                name = str(path.relative_to(digits.imagenet))
                lines.append(f"{name} {label}")
                link = inat / "train_val2018" / "Animals" / str(label) / f"{split}_{path.name}"
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(path)
                images.append({"file_name": f"train_val2018/Animals/{label}/{link.name}"})
        (lists / f"{split}_places205.csv").write_text("\n".join(lines) + "\n")
        (inat / f"{split}2018.json").write_text(json.dumps({"images": images}))
