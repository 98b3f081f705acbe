#!/usr/bin/env python3
"""Collects the licence notices of every crate that is linked into gems-engine into assets/third-party-licences.txt.

    scripts/licences.py           write the file
    scripts/licences.py --check   fail if it is not what would be written

Texts that several crates share stand once, under all their names.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "assets/third-party-licences.txt"
NOTICE = re.compile(r"^(licen[cs]e|copying|notice|unlicense|copyright)", re.I)
RULE = "=" * 100


def linked():
    """Packages that end in the program, on Linux: no build scripts' tools, nothing of the tests."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    own = next(id for id, package in packages.items() if package["name"] == "gems-engine")
    found, waiting = set(), [own]
    while waiting:
        id = waiting.pop()
        if id in found:
            continue
        found.add(id)
        for dependency in nodes[id]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return sorted((packages[id] for id in found - {own}), key=lambda p: (p["name"], p["version"]))


def notices(package):
    folder = Path(package["manifest_path"]).parent
    named = [folder / package["license_file"]] if package.get("license_file") else []
    files = sorted(path for path in folder.iterdir() if path.is_file() and NOTICE.match(path.name))
    for path in dict.fromkeys(named + files):
        if path.is_file():
            yield path.read_text(errors="replace").replace("\r\n", "\n").strip()


def collected():
    texts, users, bare = {}, defaultdict(list), []
    for package in linked():
        name = f"{package['name']} {package['version']} ({package['license'] or 'see below'})"
        found = list(notices(package))
        if not found:
            authors = ", ".join(package["authors"]) or "its authors"
            bare.append(f"{name}, by {authors}; {package['repository'] or 'no repository named'}")
        for text in found:
            key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            texts.setdefault(key, text)
            users[key].append(name)
    parts = ["gems-engine contains the work of others, under the licences below."]
    if bare:
        parts.append("Crates that bring no licence text of their own, under the licence that they name:\n\n" + "\n".join(bare))
    for key, names in sorted(users.items(), key=lambda entry: entry[1]):
        parts.append("\n".join(dict.fromkeys(names)) + "\n\n" + texts[key])
    return f"\n\n{RULE}\n\n".join(parts) + "\n"


def main():
    text = collected()
    if "--check" in sys.argv[1:]:
        if not OUT.is_file() or OUT.read_text() != text:
            sys.exit(f"{OUT.relative_to(ROOT)} is not up to date: run scripts/licences.py")
        return
    OUT.write_text(text)
    print(f"{OUT.relative_to(ROOT)}: {len(text) // 1024} KiB")


if __name__ == "__main__":
    main()
