"""What a package's page and the repository's host show."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_package_page_has_no_relative_link() -> None:
    page = (ROOT / PROJECT["readme"]).read_text()
    links = LINK.findall(page)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_package_page_shows_the_readmes_code_and_versions() -> None:
    page = (ROOT / PROJECT["readme"]).read_text()
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        assert block in (ROOT / "README.md").read_text()
    assert f"Python {PROJECT['requires-python'].replace('>=', '≥ ')}" in page
    (torch,) = (one for one in PROJECT["dependencies"] if one.startswith("torch>"))
    assert torch.replace(">=", " ≥ ") in page
    for extra in re.findall(r"dcn-zoo\[(\w+)\]", page):
        assert extra in PROJECT["optional-dependencies"]


@pytest.mark.parametrize(
    "page",
    ["README.md", "README.zh-CN.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/*.md"))],
)
def test_relative_links_lead_to_files(page: str) -> None:
    path = ROOT / page
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
    targets = [
        link.partition("#")[0] for link in LINK.findall(text) if "://" not in link and not link.startswith("#")
    ]
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_both_readmes_have_the_same_code_and_numbers() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    for block in re.findall(r"```python\n(.*?)```", chinese, re.DOTALL):
        bare = re.sub(r"  #.*", "", block)
        assert bare in re.sub(r"  #.*", "", english)
    ratios = re.findall(r"\d+\.\d+", chinese.partition("## ")[0])
    assert ratios
    assert [ratio for ratio in ratios if ratio not in english] == []


def test_the_citation_and_the_workflow_are_of_this_project() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"]
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert scripts == [".ci/run", ".ci/ecosystem"]
    assert all((ROOT / script).stat().st_mode & 0o100 for script in scripts)


def test_every_package_of_the_sources_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    names = {"scripts": "zoo.scripts", "conf": "zoo.conf"}
    for top in ("dcn_ops", "zoo", "scripts", "conf"):
        for file in (ROOT / top).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT).parts
            assert ".".join((names.get(parts[0], parts[0]), *parts[1:])) in packages
