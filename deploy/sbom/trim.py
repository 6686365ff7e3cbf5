"""Leaves in a CycloneDX file what is in the program, and nothing of the machine that wrote it.

    trim.py FOLDER <flowend_bin.cdx.json    FOLDER: the workspace it was made from, and in it `tree`, from cargo tree

cargo-cyclonedx takes its list from `cargo metadata`, which knows the features of all members and tests together, so it
names crates that the program is built without. `cargo tree` resolves as the build does: its list is the one that counts.
"""

import json
import sys

KEPT = ("type", "bom-ref", "name", "version", "scope", "hashes", "licenses", "purl")


def built_in(folder):
    """Name and version of each crate in the program, flowend among them."""
    with open(f"{folder}/tree", encoding="utf-8") as lines:
        words = (line.split() for line in lines)
        return {(name, version.removeprefix("v")) for name, version, *_ in words}


def trimmed(component):
    kept = {key: component[key] for key in KEPT if key in component}
    # A crate of this workspace: where it lies in the copy says nothing.
    kept["purl"] = kept["purl"].split("?download_url=file:")[0]
    return kept


def main():
    folder = sys.argv[1]
    text = sys.stdin.read().replace(f"path+file://{folder}/", "path+file:")
    bom = json.loads(text)
    built = built_in(folder)
    program = trimmed(bom["metadata"]["component"])
    built.discard((program["name"], program["version"]))

    components = [trimmed(c) for c in bom["components"] if (c["name"], c["version"]) in built]
    missing = built - {(c["name"], c["version"]) for c in components}
    if missing:
        sys.exit(f"deploy/sbom/trim.py: cargo-cyclonedx does not list {sorted(missing)}")
    references = {program["bom-ref"], *(c["bom-ref"] for c in components)}
    dependencies = [
        entry | {"dependsOn": [to for to in entry.get("dependsOn", []) if to in references]}
        for entry in bom["dependencies"]
        if entry["ref"] in references
    ]
    del bom["metadata"]["timestamp"]
    bom["metadata"]["component"] = program
    bom |= {"components": components, "dependencies": dependencies}
    # A line for each crate: a change of Cargo.lock is read in the diff.
    lines = ",\n".join("    " + json.dumps(c, separators=(",", ":")) for c in components)
    edges = ",\n".join("    " + json.dumps(d, separators=(",", ":")) for d in dependencies)
    head = json.dumps({key: bom[key] for key in ("bomFormat", "specVersion", "version", "metadata")}, indent=2)
    print(f'{head[:-2]},\n  "components": [\n{lines}\n  ],\n  "dependencies": [\n{edges}\n  ]\n}}')


main()
