"""The report: numbers of the files next to it, no scripts, no network, and accessible text."""

import base64
import csv
import json
import math
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sam2_3dmed_jax.commands.main import main
from sam2_3dmed_jax.prompts.protocols import INFORMATION, INTERACTIVE, NEAREST_COMPONENT, PROTOCOLS
from sam2_3dmed_jax.volume.io import write_nifti
from tests.helpers.chromium import browser_path

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
HOSTILE_FILE = "<script>document.title=1<_script> \"'&amp; $x_"
HOSTILE_CLASS = '"><svg onload=alert(1)>$\\frac{'
HOSTILE_METHOD = "</title><img src=https://example.org/x onerror=alert(1)>"


@dataclass
class Table:
    caption: str = ""
    header: list[str] = field(default_factory=list)
    rows: list[list[tuple[str, list[str]]]] = field(default_factory=list)  # per cell: its text, its exact numbers


class Page(HTMLParser):
    """The page as a browser reads it: tags with attributes, tables, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[Table] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "table":
            self.tables.append(Table())
        elif tag == "tr" and "tbody" in self._open:
            self.tables[-1].rows.append([])
        elif tag in ("td", "th") and "tbody" in self._open:
            self.tables[-1].rows[-1].append(("", []))
        elif tag == "th":
            self.tables[-1].header.append("")
        elif tag == "data":
            self.tables[-1].rows[-1][-1][1].append(dict(attrs)["value"] or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag  # well nested

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self.tables[-1].caption += data
        elif "tbody" in self._open and ("td" in self._open or "th" in self._open):
            text, numbers = self.tables[-1].rows[-1][-1]
            self.tables[-1].rows[-1][-1] = (text + data, numbers)
        elif "thead" in self._open and "th" in self._open:
            self.tables[-1].header[-1] += data

    def table(self, named: str) -> Table:
        (match,) = [table for table in self.tables if table.caption.startswith(named)]
        return match


def box(shift: int = 0, tumour: bool = True) -> np.ndarray:
    labels = np.zeros((14, 12, 8), np.uint8)
    labels[3 + shift : 9 + shift, 4:8, 2:6] = 1
    labels[4 + shift : 6 + shift, 5:7, 3:4] = 2 if tumour else 1
    return labels


def folder(root: Path, name: str, cases: dict[str, np.ndarray]) -> str:
    for case, labels in cases.items():
        write_nifti(root / name / f"{case}.nii.gz", labels, AFFINE)
    return str(root / name)


def evaluate(*words: str) -> None:
    assert main(["evaluate", *words]) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return results of two methods on five cases: one is missing, one has no tumour, one has a hostile name."""
    root = tmp_path_factory.mktemp("report")
    cases = {"a": box(), "b": box(), "none": box(tumour=False), HOSTILE_FILE: box(), "missing": box()}
    references = folder(root, "references", cases)
    predicted = {"a": box(1), "b": box(0), "none": box(2, tumour=False), HOSTILE_FILE: box(3)}
    predictions = folder(root, "found", predicted)
    images = folder(root, "images", {f"{case}_0000": labels * 50 for case, labels in cases.items()})
    words = ["--references", references, "--classes", f"1=organ,2=tumour,1+2={HOSTILE_CLASS}"]
    words += ["--tolerance-mm", "3,tumour=1", "--tumours", "tumour"]
    evaluate("--predictions", references, "--out", str(root / "theirs"), *words)
    words += ["--images", images, "--compare", str(root / "theirs"), "--method", HOSTILE_METHOD]
    evaluate("--predictions", predictions, "--out", str(root / "out"), *words)
    return root


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def check(cell: tuple[str, Sequence[str]], value: float | None, digits: int) -> None:
    """Check that a cell shows a rounded number and contains its exact value."""
    shown, (whole,) = cell
    if value is None or math.isnan(value):
        assert shown == "–" and whole in ("", "nan")
    else:
        assert float(whole) == value and shown.lstrip("+") == f"{value:.{digits}f}"


def test_the_table_of_cases_has_the_numbers_of_the_csv(root: Path, page: Page):
    with (root / "out" / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = page.table("Cases. Each row")
    assert len(table.rows) == len(rows) == 15
    names = {"dice": "Dice", "nsd": "NSD", "hd95_mm": "HD95 (mm)", "volume_error_ml": "volume error (mL)"}
    for cells, row in zip(table.rows, rows, strict=True):
        of = dict(zip(table.header, cells, strict=True))
        assert (of["case"][0], of["class"][0], of["missing"][0]) == (row["case"], row["class"], row["missing"])
        for column, name in names.items():
            assert of[name][1] == [row[column]]
            check(of[name], float(row[column]), 4 if column in ("dice", "nsd") else 2)
        assert of["lesions"][0] == row["lesions_reference"]


def test_scores_and_counts_equal_the_summary(root: Path, page: Page):
    summary = json.loads((root / "out" / "summary.json").read_text())
    table = page.table("Scores.")
    of = {(cells[0][0], cells[1][0]): dict(zip(table.header, cells, strict=True)) for cells in table.rows}
    for name, entry in summary["classes"].items():
        for metric, shown in (
            ("dice", "Dice"),
            ("nsd", f"NSD at {entry['tolerance_mm']:g} mm"),
            ("assd_mm", "ASSD (mm)"),
        ):
            cells, digits = of[name, shown], 2 if metric == "assd_mm" else 4
            for column, key in (("mean", "mean"), ("SD", "sd"), ("q1", "q1"), ("median", "median"), ("q3", "q3")):
                check(cells[column], entry[metric][key], digits)
            assert [float(end) for end in cells["95 % interval"][1]] == (entry[metric]["ci95"] or [])
            assert cells["n"][0] == str(entry[metric]["n"])
    check(of["macro", "Dice"]["mean"], summary["macro_dice"], 4)
    counts = {cells[0][0]: [text for text, _ in cells[1:]] for cells in page.table("Cases of each kind").rows}
    assert counts["tumour"] == ["2", "5", "1", "0", "1", "1"] and counts["organ"] == ["1", "5", "1", "0", "0", "1"]
    bias = {cells[0][0]: cells for cells in page.table("Agreement").rows}["organ"]
    error = summary["classes"]["organ"]["volume_error_ml"]
    check(bias[1], error["mean"], 2)
    assert float(bias[2][1][0]) == pytest.approx(error["mean"] - 1.96 * error["sd"])


def test_the_comparison_has_the_numbers_of_its_json(root: Path, page: Page):
    results = json.loads((root / "out" / "comparison.json").read_text())["results"]
    table = page.table("Comparison.")
    for cells, entry in zip(table.rows, results, strict=True):
        of = dict(zip(table.header, cells, strict=True))
        assert of["class"][0] == entry["class"] and of["cases"][0] == str(entry["cases"])
        check(of["difference"], entry["difference"], 4 if "_mm" not in entry["metric"] else 2)
        if entry["primary"]:
            check(of["p (cases and seeds, Holm)"], entry["p_crossed_holm"], 4)
            check(of["p (Wilcoxon, Holm)"], entry["p_holm"], 4)
        assert of["kind"][0] == ("primary" if entry["primary"] else "exploratory")


def test_the_result_comes_first_and_bookkeeping_last(text: str):
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings[:4] == ["Result", "Worst cases", "Comparison", "Spread over cases"]
    assert headings[-3:] == ["What was measured", "Cost", "Definitions"]


def test_the_headline_has_the_means_and_intervals_of_the_summary(root: Path, page: Page):
    summary = json.loads((root / "out" / "summary.json").read_text())
    table = page.table("Result.")
    assert table.header == ["class", "Dice", "NSD", "cases"] and HOSTILE_METHOD in table.caption
    of = {cells[0][0]: cells for cells in table.rows}
    for column, metric in ((1, "dice"), (2, "nsd")):
        for name, entry in {**summary["classes"], "mean of 2 classes": summary["macro"]}.items():
            shown = [float(number) for number in of[name][column][1]]
            assert shown == [entry[metric]["mean"], *entry[metric]["ci95"]]
    assert of["tumour"][3][0] == "4" and "tumour 1 mm" in table.caption  # one case has no tumour


def test_the_headline_compares_the_methods_and_calls_five_cases_too_few(root: Path, page: Page):
    results = json.loads((root / "out" / "comparison.json").read_text())["results"]
    table = page.table("Difference.")
    organ = {cells[0][0]: cells for cells in table.rows}["organ"]
    (dice,) = [entry for entry in results if (entry["class"], entry["metric"]) == ("organ", "dice")]
    assert [float(number) for number in organ[1][1]] == [dice["difference"], *dice["ci95"]]
    assert organ[1][0].endswith("too few cases")
    # Wilcoxon's exact test of five pairs: 2 of 2^5 combinations of signs are as extreme as equal signs.
    assert "5 cases cannot show a significant difference" in page.text and "here 0.062" in page.text


def test_the_headline_states_what_the_prompts_gave_away_and_what_is_missing(root: Path, page: Page):
    assert "What the prompts gave away. Nothing: the method is scored as automatic" in page.text
    assert "Missing. The predictions of 1 of 5 cases; they count as empty." in page.text
    references = str(root / "references")
    words = ["--protocol", "box-mid", "--out", str(root / "prompted"), "--classes", "1=organ"]
    evaluate("--predictions", references, "--references", references, *words)
    prompted = Page((root / "prompted" / "report.html").read_text(encoding="utf-8"))
    assert "Of each reference, the extent of the object on the slice where it is largest" in prompted.text
    assert "Dice without prompted slices" in prompted.table("Result.").header


def test_what_the_prompts_of_each_protocol_reveal_is_described():
    assert INFORMATION.keys() == {*PROTOCOLS, NEAREST_COMPONENT, INTERACTIVE}


def test_box_plots_show_both_methods_of_a_comparison(page: Page):
    (alt,) = [a["alt"] for tag, a in page.tags if tag == "img" and (a["alt"] or "").startswith("Box plots of Dice by")]
    assert f"organ, {HOSTILE_METHOD}: median" in alt and "organ, references: median 1.0000, mean 1.0000, n = 5" in alt


def test_lesions_are_counted_by_diameter(root: Path, page: Page):
    lesions = json.loads((root / "out" / "summary.json").read_text())["classes"]["tumour"]["lesions"]
    first = page.table("Lesions.").rows[0]
    assert [cell[0] for cell in first[:4]] == ["tumour", "all", str(lesions["lesions"]), str(lesions["found"])]
    check(first[4], lesions["recall"], 4)


def test_captions_define_the_scores_and_the_page_states_its_purpose(page: Page):
    assert "For research use only" in page.text
    facts = {cells[0][0]: cells[1][0] for cells in page.table("What was measured").rows}
    assert facts["method"] == HOSTILE_METHOD and facts["trained on these cases"] == "unknown"
    assert facts["block"].startswith("automatic") and facts["prompt source"] == "none"
    assert facts["missing predictions"] == "1: missing" and facts["definition of surfaces"] == "surface-distance"
    caption = page.table("Scores.").caption
    for words in (
        "'surface-distance'",
        "tumour 1 mm",
        "organ 3 mm",
        "'diagonal'",
        "protocol none",
        "Macro: plain mean",
    ):
        assert words in caption


def test_names_with_markup_stay_text(page: Page):
    known = (
        "html head meta title style body main h1 h2 p b section div table caption thead tbody tr th td data figure img"
    )
    assert {tag for tag, _ in page.tags} <= {*known.split(), "figcaption", "details", "summary"}
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count(HOSTILE_FILE) >= 3 and HOSTILE_CLASS in page.text
    assert HOSTILE_METHOD in page.text


def test_the_page_fetches_nothing(text: str, page: Page):
    policy = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and policy[0].startswith("default-src 'none'; img-src data:;")
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert not re.search(r"https?://|url\(|@import|srcset", text.replace("https://example.org/x", ""))
    for source in sources:
        if source.startswith("data:image/svg"):
            svg = base64.b64decode(source.partition(",")[2]).decode()
            assert "<script" not in svg and "<image" not in svg
            assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', svg))


def test_every_picture_has_a_text_and_every_table_has_headings(page: Page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 10 and all(len(image["alt"] or "") > 30 for image in images)
    assert any(f"organ, {HOSTILE_METHOD}: median" in (image["alt"] or "") for image in images)
    assert all(table.caption and all(table.header) for table in page.tables)
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_the_worst_cases_are_drawn_and_the_missing_file_is_not(page: Page):
    pictures = [a for tag, a in page.tags if tag == "img" and (a["src"] or "").startswith("data:image/png")]
    listed = [(cells[0][0], cells[1][0]) for cells in page.table("Worst cases").rows]
    assert len(pictures) == len(listed) == 6
    assert listed[0] == (HOSTILE_FILE, "tumour") and "missing" not in {case for case, _ in listed}
    for (case, name), picture in zip(listed, pictures, strict=True):
        assert f"{name} of {case}: Dice" in picture["alt"]


def test_the_report_of_pooled_results_refers_to_the_pictures(
    root: Path, page: Page, capsys: pytest.CaptureFixture[str]
):
    evaluate("--results", str(root / "out"), "--out", str(root / "pooled"))
    assert "2 of 4 lesions found, 1 false" in capsys.readouterr().out
    pooled = Page((root / "pooled" / "report.html").read_text(encoding="utf-8"))
    assert pooled.table("Cases. Each row").rows == page.table("Cases. Each row").rows
    assert "Pictures are in the reports of the evaluations that read the masks" in pooled.text
    assert not [table for table in pooled.tables if table.caption.startswith("Comparison")]


def test_without_surface_metrics_the_report_has_none(root: Path):
    out = root / "overlap"
    references = str(root / "references")
    evaluate("--predictions", references, "--references", references, "--metrics", "overlap", "--out", str(out))
    page = Page((out / "report.html").read_text(encoding="utf-8"))
    assert "none: only overlap was measured" in page.text
    assert "NSD at" not in page.text and "HD95 (mm)" not in page.table("Scores.").caption


def test_images_without_a_reference_are_a_mistake(root: Path, capsys: pytest.CaptureFixture[str]):
    references = str(root / "references")
    words = ["evaluate", "--predictions", references, "--references", references, "--out", str(root / "x")]
    strange = folder(root, "strange", {"z": box()})
    assert main([*words, "--images", strange]) == 2
    assert "holds no image of a reference" in capsys.readouterr().err
    assert main(["evaluate", "--results", str(root / "out"), "--images", strange, "--out", str(root / "x")]) == 2
    assert "--images is for --predictions" in capsys.readouterr().err


def dom_in_browser(page: Path) -> str:
    """Return what Chromium makes of a page, after its scripts."""
    words = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}", "--dump-dom"]
    command = [browser_path(), *words, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def with_script(text: str, script: str) -> str:
    """Return a copy of a page without its policy, which forbids scripts, and with a script."""
    policy = re.search(r"<meta http-equiv[^>]*>", text)
    assert policy
    return text.replace(policy[0], "") + f"<script>{script}</script>"


def test_a_browser_shows_every_picture_and_loads_nothing_else(text: str, tmp_path: Path):
    probe = (
        "onload = () => { document.title = 'shown ' + [...document.images].filter(i => i.naturalWidth).length"
        " + ' fetched ' + performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length }"
    )
    images = sum(tag == "img" for tag, _ in Page(text).tags)
    for name, content in {"own": text, "probed": with_script(text, probe)}.items():
        (tmp_path / f"{name}.html").write_text(content, encoding="utf-8")
        title = re.search("<title>(.*?)</title>", dom_in_browser(tmp_path / f"{name}.html"), re.DOTALL)
        assert title
        start = "Evaluation of &lt;/title&gt;" if name == "own" else f"shown {images} fetched 0"
        assert title[1].startswith(start)


def test_on_a_phone_captions_fit_the_screen_and_only_tables_scroll(text: str, tmp_path: Path):
    # The window of a browser has a least width, so that the page is in a frame of 390 pixels.
    probe = (
        "onload = () => { const wide = [...document.querySelectorAll('caption div, figcaption, p, h2')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).length;"
        "const root = document.documentElement;"
        "parent.postMessage(`${innerWidth} px, beyond ${wide + root.scrollWidth - root.clientWidth}`, '*') }"
    )
    (tmp_path / "probed.html").write_text(with_script(text, probe), encoding="utf-8")
    frame = "<script>onmessage = event => { document.title = event.data }</script>"
    frame += '<iframe src="probed.html" style="width: 390px; height: 800px; border: 0"></iframe>'
    (tmp_path / "phone.html").write_text(frame, encoding="utf-8")
    assert "<title>390 px, beyond 0</title>" in dom_in_browser(tmp_path / "phone.html")
