"""`t5lite inspect --attention`: the page holds what was found, keeps to itself, and works."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest
from small_folders import add_tokenizer, copied

import t5lite
from t5lite.inference import Inside, attention_maps, attribution
from t5lite.main import main
from t5lite.reporting import attention_page

pytest.importorskip("tokenizers")

NASTY = "</script><script>alert(1)</script><b onclick=alert(1)>"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, text, style and the data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.inside = [], [], []
        self.feed(text)
        self.data = json.loads("".join(each for tag, each in self.texts if tag == "json"))
        self.text = "".join(each for tag, each in self.texts if tag not in ("json", "script"))
        self.loose = [tag for tag in self.inside if tag not in ("meta", "link")]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        json = dict(attributes).get("type") == "application/json"
        self.inside.append("json" if json else tag)

    def handle_endtag(self, tag):
        while self.inside[-1] in ("meta", "link"):
            self.inside.pop()
        assert self.inside.pop() in (tag, "json")

    def handle_data(self, text):
        self.texts.append((self.inside[-1] if self.inside else "", text))


def found(**changes):
    """Returns what could have been found in an encoder-decoder of one layer."""
    rng = np.random.default_rng(0)
    shapes = {"encoder": (3, 3), "decoder": (2, 2), "cross": (2, 3)}
    given = {
        "tokens": {"encoder": [NASTY, " ", "c"], "decoder": ["<pad>", "d"]},
        "maps": {
            kind: [rng.dirichlet(np.ones(shape[1]), (4, shape[0])).astype(np.float32)]
            for kind, shape in shapes.items()
        },
        "outputs": ["d", NASTY],
        "places": np.arange(2, dtype=np.int32),
        "losses": np.array([0.5, 3.25], np.float32),
        "alternatives": [[("d", 0.6), ("e", 0.1)], [("f", 0.5), ("g", 0.2)]],
        "targets": NASTY,
        "no_losses": None,
    }
    return Inside(**(given | changes))


SHARES = np.array([[0.5, -0.25, 0, 1e-9, 0], [1, 2, -3, 4, -5]], np.float32)


def weights(entry, tokens):
    """Returns the maps of an entry of the page, an array a layer."""
    flat = np.frombuffer(base64.b64decode(entry["data"]), np.uint8).astype(np.float32)
    size = len(tokens[entry["queries"]]) * len(tokens[entry["keys"]])
    ends = np.cumsum([heads * size for heads in entry["heads"]])
    shape = (-1, len(tokens[entry["queries"]]), len(tokens[entry["keys"]]))
    return [(part / 255).reshape(shape) ** 2 for part in np.split(flat, ends[:-1])]


def test_the_page_holds_what_was_found():
    inside = found()
    data = Page(attention_page.render(inside, SHARES, name="n", text="t")).data
    assert data["tokens"] == inside.tokens
    for entry, (kind, maps) in zip(data["maps"], inside.maps.items(), strict=True):
        assert entry["queries"] == ("encoder" if kind == "encoder" else "decoder")
        for shown, each in zip(weights(entry, data["tokens"]), maps, strict=True):
            assert np.abs(shown - each).max() <= 0.004
    assert [each["loss"] for each in data["outputs"]] == [0.5, 3.25]
    assert data["outputs"][1]["alternatives"] == [["f", 0.5], ["g", 0.2]]
    np.testing.assert_allclose(data["attribution"], SHARES, rtol=1e-3)
    assert data["last"] == "decoder"


def test_it_fetches_nothing_and_texts_stay_texts():
    rendered = attention_page.render(found(), SHARES, name=NASTY, text=NASTY)
    page = Page(rendered)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none';")
    for tag, attributes in page.tags:
        assert tag not in {"img", "iframe", "base", "object", "embed"}
        assert not {"src", "onclick"} & set(attributes)
        assert re.match(r"#|data:,$", attributes.get("href", "#"))
    assert "http://" not in rendered
    assert "https://" not in rendered
    assert "url(" not in rendered
    assert "@import" not in rendered
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert page.text.count(NASTY) == 4  # title, heading, text, targets
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_model_of_no_losses_says_why():
    inside = found(
        outputs=[], places=np.zeros(0, int), losses=np.zeros(0), alternatives=[], no_losses="a & b"
    )
    page = Page(attention_page.render(inside, None, name="n", text="t"))
    assert "No losses: a & b." in page.text
    assert page.data["outputs"] == page.data["attribution"] == []


def test_what_is_not_finite_is_no_number():
    inside = found(losses=np.array([np.nan, np.inf], np.float32))
    inside.maps["encoder"][0][0] = np.nan
    data = Page(attention_page.render(inside, SHARES * np.nan, name="n", text="t")).data
    assert [each["loss"] for each in data["outputs"]] == [None, None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return {case: add_tokenizer(copied(case, root / case)) for case in ("gpt2", "t5_1_1")}


@pytest.mark.parametrize(
    ("case", "flags"), [("gpt2", []), ("t5_1_1", ["--targets=sat", "--output=new/page.html"])]
)
@pytest.mark.light("t5_1_1")
def test_the_command(folders, case, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", f"--model_dir={folders[case]}", "--attention", "a cat", *flags]) == 0
    path = "new/page.html" if flags else "attention-gpt2.html"
    assert capsys.readouterr().out == f"{path}\n"
    data = Page((tmp_path / path).read_text(encoding="utf-8")).data
    loaded = t5lite.load(folders[case])
    inside = attention_maps(loaded, "a cat", "sat" if flags else None)
    assert data["tokens"] == inside.tokens
    for entry, maps in zip(data["maps"], inside.maps.values(), strict=True):
        for shown, each in zip(weights(entry, data["tokens"]), maps, strict=True):
            assert np.abs(shown - each).max() <= 0.004
    shares = attribution(loaded, "a cat", inside.targets)
    np.testing.assert_allclose(data["attribution"], shares, rtol=1e-3, atol=1e-6)


def test_the_model_gives_its_own_answer(folders):
    loaded = t5lite.load(folders["t5_1_1"], devices=jax.devices()[:1])
    (answer,) = loaded.generate(["a cat"])
    assert attention_maps(loaded, "a cat").targets == answer


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--attention=a"], "--attention needs a model: --model_dir=DIR"),
        (["--model_dir=d"], "--model_dir is for --attention=TEXT, which is missing"),
        (["--targets=d"], "--targets is for --attention=TEXT, which is missing"),
        (["--attention=a", "--model_dir=nowhere"], "there is no folder 'nowhere'"),
        (["--attention=a", "--model_dir=d", "--output=/"], "--output=/: must be a file"),
        (
            ["--attention=a", "--model_dir=d", "--gin_file=run.gin"],
            "--attention reads no gin config",
        ),
        (["--attention", "", "--model_dir=gpt2"], "the text is empty"),
        (["--attention=a", "--targets=b", "--model_dir=gpt2"], "targets = 'b': are for encoder-d"),
    ],
)
def test_mistakes(folders, flags, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.gin").write_text("STEPS = 3\n")
    flags = [flag.replace("=gpt2", f"={folders['gpt2']}") for flag in flags]
    assert main(["inspect", *flags]) == 2
    assert expected in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.gin"]


def test_a_text_that_no_browser_would_like(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(attention_page, "MAX_BYTES", 100)
    assert main(["inspect", f"--model_dir={folders['gpt2']}", "--attention=a cat"]) == 2
    assert "a text of 5 tokens has" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Chooses an output, a kind, a head and, by keys and by pointer, cells; then the other theme.
USE = """
const all = selector => document.querySelectorAll(selector), seen = document.body.dataset;
seen.heads = all("#heads button").length;
all("#outputs button")[1].click();
seen.chosen = document.querySelector("#detail h3").textContent;
seen.inputs = all("#inputs .token").length;
all("#kinds button")[2].click();
all("#heads button")[3].click();
const map = document.getElementById("map"), cells = map.querySelector("canvas");
for (const key of ["ArrowUp", "ArrowDown", "ArrowRight", "ArrowRight"])
  map.dispatchEvent(new KeyboardEvent("keydown", {key}));
seen.keys = document.getElementById("readout").textContent;
const box = cells.getBoundingClientRect();
cells.dispatchEvent(new PointerEvent("pointermove",
  {clientX: box.left + 2, clientY: box.top + 2, bubbles: true}));
seen.pointed = document.getElementById("readout").textContent;
document.getElementById("theme").click();
seen.over = document.documentElement.scrollWidth - document.documentElement.clientWidth;
"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_the_page_answers(tmp_path):
    inside = found()
    page = attention_page.render(inside, SHARES, name="n", text="t")
    late = f"<script>setTimeout(() => {{{USE}}}, 300)</script></body>"
    (tmp_path / "page.html").write_text(page.replace("</body>", late), encoding="utf-8")
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1280,1400"),
    )
    address = (tmp_path / "page.html").as_uri()
    done = subprocess.run(
        [BROWSER, *flags, f"--user-data-dir={tmp_path}/profile", "--dump-dom", address],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', re.search(r"<body[^>]*>", done.stdout)[0]))
    assert html.unescape(seen.pop("chosen")) == NASTY.replace(" ", "␣")
    keys, pointed = html.unescape(seen.pop("keys")), html.unescape(seen.pop("pointed"))
    assert seen == {"heads": "4", "inputs": "5", "over": "0"}
    weight = inside.maps["cross"][0][3]
    for said, (query, key), names in (
        (keys, (1, 2), ("d", "c")),
        (pointed, (0, 0), ("<pad>", NASTY.replace(" ", "␣"))),
    ):
        share = float(re.search(r"([\d.]+) %", said)[1]) / 100
        assert said.startswith(f"Layer 1, head 4: {names[0]} takes ")
        assert said.endswith(f" from {names[1]}")
        assert share == pytest.approx(weight[query, key], abs=0.005)
    assert 'data-theme="dark"' in done.stdout
