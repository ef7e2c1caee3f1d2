"""What people and services expect beside the code: how to cite it, and the gate in public."""

import os

import yaml
from documented import ROOT

from vissl_barlow.version import __version__


def test_the_citation_is_of_this_version_and_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {
        "cff-version",
        "message",
        "title",
        "authors",
    } <= citation.keys()  # the format's own demand
    assert citation["version"] == __version__
    assert citation["license"] == (ROOT / "LICENSE").read_text().split()[0]
    (paper,) = citation["references"]
    assert paper["title"].startswith("Barlow Twins") and len(paper["authors"]) == 5


def test_the_public_gate_is_the_one_that_runs_anywhere():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[-1].endswith(" .ci/run") and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert {"push", "pull_request"} <= workflow[True].keys()  # YAML's own word for `on`
