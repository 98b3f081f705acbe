#!/usr/bin/env python3
"""A CycloneDX 1.5 bill of materials of what is linked into gems-engine: scripts/sbom.py [--features F] > sbom.json

Crates, versions, licences and checksums are those of Cargo.lock, as `cargo metadata` resolves it for this machine's target.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def metadata(features):
    host = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    target = next(line.split()[1] for line in host.splitlines() if line.startswith("host:"))
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target]
    if features:
        command += ["--features", features]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def linked(resolve, start):
    """Ids of the packages that the program is built with: normal dependencies, of dependencies too."""
    nodes = {node["id"]: node for node in resolve["nodes"]}
    found, left = set(), [start]
    while left:
        node = left.pop()
        if node in found:
            continue
        found.add(node)
        for dep in nodes[node]["deps"]:
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                left.append(dep["pkg"])
    return found


def main():
    features = sys.argv[2] if len(sys.argv) == 3 and sys.argv[1] == "--features" else ""
    data = metadata(features)
    packages = {package["id"]: package for package in data["packages"]}
    ours = next(p for p in data["packages"] if p["name"] == "gems-engine")
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    sums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}

    def component(package, kind):
        name, version = package["name"], package["version"]
        found = {"type": kind, "name": name, "version": version, "purl": f"pkg:cargo/{name}@{version}"}
        found["bom-ref"] = found["purl"]
        if package.get("license"):
            found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if sums.get((name, version)):
            found["hashes"] = [{"alg": "SHA-256", "content": sums[(name, version)]}]
        return found

    ids = linked(data["resolve"], ours["id"]) - {ours["id"]}
    parts = sorted((packages[i] for i in ids), key=lambda p: (p["name"], p["version"]))
    bill = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1}
    bill["metadata"] = {"component": component(ours, "application")}
    bill["components"] = [component(part, "library") for part in parts]
    json.dump(bill, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
