"""Files of the page: the vendored viewer is the published one, and the page loads nothing from elsewhere."""

import hashlib
import re

import pytest

from sam2_3dmed_jax.server.page.routes import STATIC


def test_the_vendored_viewer_is_the_published_file_and_has_its_licence():
    digest = hashlib.sha256((STATIC / "niivue.umd.js").read_bytes()).hexdigest()
    assert digest in (STATIC / "niivue.README.md").read_text()
    assert "BSD 2-Clause License" in (STATIC / "niivue.LICENSE.txt").read_text()


@pytest.mark.parametrize("name", ["index.html", "page.js", "page.css"])
def test_files_of_the_page_refer_to_no_other_site(name):
    assert re.findall(r"https?://[^\s\"']+", (STATIC / name).read_text()) == []


def test_the_page_has_no_code_in_its_html():
    html = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)|\son[a-z]+=|javascript:|\sstyle=", html) == []


def test_each_element_that_the_code_uses_exists_once():
    html, code = (STATIC / "index.html").read_text(), (STATIC / "page.js").read_text()
    used = set(re.findall(r'\$\("([\w-]+)"\)', code))
    ids = re.findall(r'\bid="([\w-]+)"', html)
    assert len(ids) == len(set(ids)) and used <= set(ids)
